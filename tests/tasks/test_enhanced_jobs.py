"""Wan jobs whose prompt is enhanced first: the chain of two messages, and what its caller hears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, pools

from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.celery_settings import ENHANCE_TASK, GENERATION_TASKS
from ourvidz.errors import ModelLoadError, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.memory_store import MemoryLedger
from ourvidz.ledger.record import Worker
from ourvidz.settings import load_settings
from ourvidz.tasks import enhancement, wan
from ourvidz.testing import Eager
from ourvidz.wiring import control
from ourvidz.workflows.enhancement import wording

JOB = {
    "id": "a",
    "type": "image7b_fast_enhanced",
    "prompt": "a red circle on a blue background",
    "user_id": "me",
    "config": {"steps": 1, "seed": 3},
}
WAN = "ourvidz.wan.generate"
QUEUES = ("chat_queue", "wan_queue")


class TestInOneProcess:
    """Eager mode, on the models that ship."""

    def test_the_caller_hears_of_one_job_and_gets_the_words(self, ourvidz_eager: Eager) -> None:
        """One `processing` and one ending for both steps; the words are the prompt's and more."""
        ourvidz_eager.submit(JOB)
        assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]
        told = ourvidz_eager.callbacks.of("a")[-1].payload
        assert told["enhancedPrompt"].startswith(JOB["prompt"])
        assert told["enhancedPrompt"] != JOB["prompt"]
        metadata = told["metadata"]
        assert (metadata["enhancement_strategy"], metadata["system_prompt_used"]) == ("qwen", "default")
        assert metadata["enhancement_source"].startswith("tiny-qwen")
        assert metadata["original_prompt"] == JOB["prompt"]
        record = ourvidz_eager.record("a")
        assert (record.attempt, record.stage, record.enhancement) == (1, None, "over")

    def test_the_pipeline_is_given_the_words(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the callback shows as enhanced is what was generated from, in every attempt."""
        used: list[str] = []

        def story(job: Any, run: Any, use: Any) -> Outcome:
            used.append(wording(job, run).prompt)
            if len(used) == 1:
                raise OutOfMemory("no room")
            return Outcome(status="completed")

        monkeypatch.setattr(wan, "generate_video", story)
        ourvidz_eager.submit(JOB)
        found = ourvidz_eager.record("a").wording
        assert found is not None
        assert used == [found["prompt"]] * 2

    def test_a_worker_without_the_model_costs_the_words_alone(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The job completes with the prompt as it was sent, and says why."""

        def broken(family: str) -> Any:
            raise ModelLoadError(f"no models for {family}")

        monkeypatch.setattr(enhancement, "services", broken)
        ourvidz_eager.submit(JOB)
        told = ourvidz_eager.callbacks.of("a")[-1].payload
        assert (told["status"], told["enhancedPrompt"]) == ("completed", JOB["prompt"])
        assert told["metadata"]["enhancement_strategy"] == "fallback"
        assert "failed" in told["metadata"]["enhancement_reason"]

    def test_a_job_cancelled_while_it_is_enhanced_never_runs(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its caller hears of the cancel and of nothing else."""
        monkeypatch.setattr(enhancement.enhancement, "enhance", cancelling(enhancement.enhancement.enhance))
        ourvidz_eager.submit(JOB)
        record = ourvidz_eager.record("a")
        assert (record.status, record.attempt, record.wording) == ("cancelled", 0, None)
        assert ourvidz_eager.callbacks.statuses("a") == ["failed"]

    def test_a_prompt_that_is_used_as_it_is_needs_no_chat_worker(self, ourvidz_eager: Eager) -> None:
        """The enhanced types can be told not to."""
        ourvidz_eager.submit(JOB | {"config": {"steps": 1, "enhance_prompt": False}})
        told = ourvidz_eager.callbacks.of("a")[-1].payload
        assert (told["enhancedPrompt"], told["metadata"]["enhancement_strategy"]) == (None, "none")


def cancelling(enhance: Any) -> Any:
    """The enhancement, with a caller who cancels just before it begins."""

    def run(job: Any, use: Any, **options: Any) -> Any:
        dispatch.cancel(job.id)
        return enhance(job, use, **options)

    return run


@dataclass
class Broker:
    """What was published, read from a real broker."""

    connection: Connection
    ledger: MemoryLedger

    def messages(self, queue: str) -> list[Any]:
        channel = self.connection.default_channel
        return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))

    def worker(self, **said: Any) -> None:
        """A worker says that it is here."""
        known = {"id": "chat@a", "family": "chat", "queue": "chat_queue", "host": "a", "pid": 1, "gpu": None}
        rest = {"models": (), "version": "1", "started_at": 0.0, "seen_at": 0.0, "state": "idle"}
        self.ledger.beat(Worker(**(known | rest | said)))


@pytest.fixture
def broker(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker that nobody takes from, and a ledger beside it."""
    chosen = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path)
    ledger = MemoryLedger()
    with (
        app.connection_for_write(url=redis_url) as connection,
        control.using(control.build(chosen, ledger=ledger)),
    ):
        monkeypatch.setattr(app.amqp, "_producer_pool", pools.producers[connection])
        for queue in QUEUES:
            app.amqp.queues[queue](connection.default_channel).declare()
        yield Broker(connection, ledger)


class TestPublishing:
    def test_with_a_chat_worker_the_words_are_found_first(self, broker: Broker) -> None:
        """Ids alone travel; the generation's message waits in the first one, with options of its own."""
        broker.worker()
        dispatch.submit(JOB)
        assert broker.messages("wan_queue") == []
        (first,) = broker.messages("chat_queue")
        assert (first.headers["task"], first.headers["id"]) == (ENHANCE_TASK, "a~enhance")
        assert first.properties["priority"] == 3
        args, _, embedded = first.payload
        assert args == [{"v": 1, "id": "a", "run": 1}]
        (second,) = embedded["chain"]
        assert (second["task"], second["args"], second["immutable"]) == (WAN, args, True)
        options = second["options"]
        assert (options["task_id"], options["queue"], options["priority"]) == ("a", "wan_queue", 6)
        assert JOB["prompt"] not in f"{first.headers}{first.payload}"
        record = broker.ledger.get("a")
        assert record is not None
        assert (record.enhancement, record.publishes) == ("wanted", 1)

    @pytest.mark.parametrize("absence", ["none", "offline", "draining", "paused", "another queue"])
    def test_without_one_the_generation_is_published_alone(self, broker: Broker, absence: str) -> None:
        """The job does not wait a minute for somebody who is not there, and its caller is told."""
        if absence != "none":
            broker.worker(queue="sdxl_queue" if absence == "another queue" else "chat_queue")
        if absence == "offline":
            broker.ledger.leave("chat@a")
        if absence == "draining":
            broker.ledger.drain("chat@a", True)
        broker.ledger.pause("chat_queue", absence == "paused")
        dispatch.submit(JOB)
        assert broker.messages("chat_queue") == []
        (alone,) = broker.messages("wan_queue")
        assert (alone.headers["task"], alone.headers["id"]) == (WAN, "a")
        record = broker.ledger.get("a")
        assert record is not None
        assert (record.enhancement, record.wording) == ("over", {"reason": dispatch.NOBODY})

    def test_another_run_has_ids_of_its_own(self, broker: Broker) -> None:
        """Celery drops a message whose id was ever revoked."""
        broker.worker()
        dispatch.submit(JOB)
        dispatch.cancel("a")
        dispatch.retry("a")
        _, again = broker.messages("chat_queue")
        assert again.headers["id"] == "a~2~enhance"
        assert again.payload[2]["chain"][0]["options"]["task_id"] == "a~2"

    def test_words_that_were_found_are_not_asked_for_again(self, broker: Broker) -> None:
        """A message that got lost after the enhancement is the generation's."""
        broker.worker()
        record = dispatch.submit(JOB).record
        held = broker.ledger.begin_enhancing("a", 1, lease_s=10, token="e")
        assert held is not None
        broker.ledger.end_enhancing(held, wording={"prompt": "a red circle, soft light"})
        broker.messages("chat_queue")
        dispatch.publish(broker.ledger.get("a") or record)
        assert broker.messages("chat_queue") == []
        assert len(broker.messages("wan_queue")) == 1


def test_the_enhancement_is_no_generation() -> None:
    """Else the signals around tasks would claim the job for it."""
    assert ENHANCE_TASK not in GENERATION_TASKS
    assert app.conf.task_routes[ENHANCE_TASK] == {"queue": "chat_queue"}
