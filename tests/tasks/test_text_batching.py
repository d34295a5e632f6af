"""The jobs of a text batch: which companions are claimed, and how each job ends."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from ourvidz import dispatch
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.claims import claim_companions
from ourvidz.errors import (
    Cancelled,
    InternalError,
    InvalidParameters,
    ModelLoadError,
    NewerRelease,
    OutOfMemory,
    WorkerLost,
    WorkerUnavailable,
)
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.records.record import Claim, Record
from ourvidz.tasks.attempt import services
from ourvidz.tasks.text_batching import ClaimedItem, ClaimedJobs
from ourvidz.testing import Eager
from ourvidz.workflows.batch_texts import StreamPart
from ourvidz.workflows.chat import run_text_batch
from ourvidz.workflows.run import FenceLost
from tests.factories import worker

WORKER = "chat@here-cpu"
DONE = Outcome(status="completed")


@pytest.fixture
def queue(ourvidz_eager: Eager) -> Callable[..., Record]:
    """Record a text job without publishing it."""

    def register(job_id: str, *, priority: int = 6, **changes: Any) -> Record:
        payload = {
            "id": job_id,
            "type": "chat_conversation",
            "prompt": f"a fox named {job_id}",
            "max_tokens": 8,
        }
        job = dispatch.parse_payload(payload | changes)
        return ourvidz_eager.control.ledger.register(job, priority=priority).record

    return register


@pytest.fixture
def start(ourvidz_eager: Eager) -> Callable[..., ClaimedJobs]:
    """Claim a job as a running task does; the result may claim companions."""

    def begin(job_id: str, *, limit: int = 8) -> ClaimedJobs:
        return ClaimedJobs(claim(ourvidz_eager, job_id), "chat", limit=limit, eager=False)

    return begin


def claim(eager: Eager, job_id: str) -> Claim:
    won = eager.control.ledger.claim(job_id, 1, worker_id=WORKER, lease_s=10, token=uuid.uuid4().hex)
    assert won is not None
    return won


def join(jobs: ClaimedJobs, batch_size: int = 1) -> list[ClaimedItem]:
    """The items that join now."""
    return jobs.next_items(jobs.first.job, batch_size=batch_size)


def ids(items: list[ClaimedItem]) -> list[str]:
    return [item.job.id for item in items]


def close(*items: ClaimedItem) -> None:
    """End all items, so that their lease threads stop."""
    for item in items:
        item.end(DONE)


def test_queued_jobs_join_a_batch_in_queue_order(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Batching does not change the order of the queue."""
    for name in ("a", "b", "c"):
        queue(name)
    queue("urgent", priority=0)
    jobs = start("a", limit=3)
    joined = join(jobs)
    assert ids(joined) == ["urgent", "b"]
    assert ourvidz_eager.record("urgent").worker_id == WORKER
    assert ourvidz_eager.record("c").status == "queued"
    close(jobs.first, *joined)


def test_an_empty_batch_polls_once_more(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job queued since the last poll starts at once instead of waiting for its message."""
    monkeypatch.setattr("ourvidz.tasks.text_batching.POLL_INTERVAL_S", 60.0)
    queue("a")
    jobs = start("a")
    assert join(jobs) == []
    queue("b")
    assert join(jobs) == []
    joined = join(jobs, batch_size=0)
    assert ids(joined) == ["b"]
    close(jobs.first, *joined)


def test_a_full_batch_claims_no_companions(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """The batch size is limited by `OURVIDZ_CHAT_BATCH`."""
    queue("a"), queue("b")
    jobs = start("a", limit=1)
    assert join(jobs) == []
    assert ourvidz_eager.record("b").status == "queued"
    close(jobs.first)


def test_no_job_overtakes_one_that_does_not_fit(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs]
) -> None:
    """A request for the other model would wait for ever behind a busy batch; from then on messages decide."""
    queue("a"), queue("other", model="qwen_base"), queue("b")
    jobs = start("a")
    assert join(jobs) == []
    queue("urgent", priority=0)
    assert join(jobs) == []
    close(jobs.first)


def test_a_cancelled_job_does_not_join(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Later jobs in the queue can still join."""
    queue("a"), queue("b"), queue("c")
    ourvidz_eager.control.ledger.request_cancel("b")
    jobs = start("a")
    joined = join(jobs)
    assert ids(joined) == ["c"]
    close(jobs.first, *joined)


def test_no_job_of_a_paused_queue_joins(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Claims of jobs in paused queues are refused."""
    queue("a"), queue("b")
    jobs = start("a")
    ourvidz_eager.control.ledger.set_paused("chat_queue", True)
    assert join(jobs) == []
    close(jobs.first)


@pytest.mark.parametrize(
    "error",
    [WorkerUnavailable("the job store is away"), ValueError("no document"), NewerRelease("upgrade it")],
)
def test_a_ledger_that_fails_is_not_polled_again(
    queue: Callable[..., Record],
    start: Callable[..., ClaimedJobs],
    ourvidz_eager: Eager,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Each poll would delay the texts by seconds, or end them for a queued job that cannot be read."""
    queue("a"), queue("b")
    jobs = start("a")
    read: list[str] = []

    def fail(queue: str, limit: int) -> Any:
        read.append(queue)
        raise error

    monkeypatch.setattr(ourvidz_eager.control.ledger, "startable", fail)
    monkeypatch.setattr("ourvidz.tasks.text_batching.POLL_INTERVAL_S", 0.0)
    assert join(jobs) == join(jobs) == []
    assert read == ["chat_queue"]
    close(jobs.first)


def test_a_stopping_worker_claims_no_companions(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """With a steady load the batch would not end before the worker is killed."""
    queue("a"), queue("b")
    jobs = start("a")
    ourvidz_eager.control.ledger.heartbeat(worker("chat", id=WORKER, state="busy"))
    ourvidz_eager.control.ledger.set_draining(WORKER, True)
    assert join(jobs) == []
    close(jobs.first)


def test_each_job_of_a_batch_has_its_own_callbacks(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Each job has one `processing` and one terminal callback, with its own text."""
    for name in ("a", "b", "c"):
        queue(name)
    jobs = start("a")
    run_text_batch(jobs.first, jobs, services("chat"))
    for name in ("a", "b", "c"):
        record = ourvidz_eager.record(name)
        assert (record.status, record.attempt) == ("completed", 1)
        assert record.outcome is not None
        assert record.outcome.assets[0].metadata["text"]
    assert [ourvidz_eager.callbacks.statuses(name)[-1] for name in ("a", "b", "c")] == ["completed"] * 3
    assert ourvidz_eager.callbacks.statuses("b") == ["processing", "completed"]


def test_an_error_of_the_whole_batch_fails_the_open_jobs(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Jobs that have ended are not changed."""
    queue("a"), queue("b")
    jobs = start("a")
    (second,) = join(jobs)
    second.end(DONE)
    jobs.fail_open(RuntimeError("a secret path /home/x"))
    assert ourvidz_eager.record("b").status == "completed"
    failed = ourvidz_eager.record("a")
    assert failed.outcome is not None
    assert failed.outcome.error is not None
    assert (failed.status, failed.outcome.error.code) == ("failed", InternalError.code)
    assert "/home" not in failed.outcome.error.message


def test_a_job_that_ran_out_of_memory_is_retried_alone(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """In a batch it would run out of memory again."""
    queue("a"), queue("b")
    jobs = start("a")
    (second,) = join(jobs)
    ledger = ourvidz_eager.control.ledger
    assert ledger.release(second.attempt.claim, code=OutOfMemory.code, due_in_s=0)
    assert join(jobs) == []
    alone = start("b")
    queue("c")
    assert join(alone) == []
    close(jobs.first, alone.first)
    second.fail(OutOfMemory("late"))
    assert ourvidz_eager.record("b").status == "completed"


def test_a_job_that_lost_its_worker_runs_alone(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """It may kill the next one too, and nobody else must pay for that: it leads no batch and joins none."""
    ledger = ourvidz_eager.control.ledger
    queue("a"), queue("b")
    batch = start("a")
    (second,) = join(batch)
    for item in (batch.first, second):
        assert ledger.rescue(item.attempt.claim)
    assert [ourvidz_eager.record(job_id).failures for job_id in ("a", "b")] == [{}, {}]
    alone = start("a")
    assert join(alone) == []
    queue("c", priority=0)
    leader = start("c")
    assert join(leader) == []
    close(batch.first, second, alone.first, leader.first)


def test_an_enhancement_without_a_model_returns_the_original_prompt(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """After the last attempt. The caller can go on with the original prompt; an error of the caller's own
    still fails the job."""
    ledger = ourvidz_eager.control.ledger
    queue("a", type="chat_enhance", prompt="a red fox")
    jobs = start("a")
    assert ledger.release(jobs.first.attempt.claim, code=ModelLoadError.code, due_in_s=0)
    again = start("a")
    again.fail_open(ModelLoadError("no weights in /home/x"))
    record = ourvidz_eager.record("a")
    assert record.outcome is not None
    assert (record.status, record.outcome.enhanced_prompt) == ("completed", "a red fox")
    assert record.outcome.metadata["enhancement_strategy"] == "fallback"
    close(jobs.first)
    queue("b", type="chat_enhance")
    start("b").fail_open(InvalidParameters("too long"))
    assert ourvidz_eager.record("b").status == "failed"


def test_a_streamed_answer_is_not_retried(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """A second attempt would repeat text that the caller has received."""
    queue("a", stream=True)
    jobs = start("a")
    jobs.stream_texts([StreamPart(jobs.first, "Once", 1, 8)])
    jobs.first.fail(OutOfMemory("no room"))
    record = ourvidz_eager.record("a")
    assert (record.status, record.attempt) == ("failed", 1)
    assert isinstance(ourvidz_eager.control.ledger.job("a"), ChatJob)


def test_an_item_whose_fence_is_lost_changes_nothing(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Another worker may have claimed the job."""
    queue("a")
    jobs = start("a")
    assert ourvidz_eager.control.ledger.rescue(ourvidz_eager.record("a"))
    jobs.first.end(DONE)
    assert jobs.first.ending == "lost"
    record = ourvidz_eager.record("a")
    assert (record.status, record.failures) == ("queued", {WorkerLost.code: 1})


def damage(eager: Eager, job_id: str) -> None:
    """Store something in the place of a record that no script can read."""
    client = eager.control.ledger._connection.client
    client.set(eager.control.ledger._keys.job(job_id), "damaged")


def streamed(eager: Eager, job_id: str) -> list[str]:
    items = eager.control.ledger.stream(job_id)
    return [item.data["text"] for item in items if item.kind == "token"]


def test_what_a_batch_writes_takes_one_round_trip(
    queue: Callable[..., Record],
    start: Callable[..., ClaimedJobs],
    ourvidz_eager: Eager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No text is decoded meanwhile, and a server that synchronises each write does it once for all."""
    for name in ("a", "b", "c"):
        queue(name)
    jobs = start("a")
    connection = ourvidz_eager.control.ledger._connection
    round_trips: list[str] = []
    original = connection.with_retries

    def count(command: Any, **options: Any) -> Any:
        round_trips.append(threading.current_thread().name)
        return original(command, **options)

    monkeypatch.setattr(connection, "with_retries", count)
    monkeypatch.setattr(CallbackSender, "deliver", lambda *_: None)
    items = [jobs.first, *join(jobs)]
    assert ids(items) == ["a", "b", "c"]
    assert len(round_trips) == 2, "one to find the companions, one to claim them"
    assert jobs.stream_texts([StreamPart(item, "Once", 1, 8) for item in items]) == [True] * 3
    assert len(round_trips) == 3
    jobs.end([(item, DONE) for item in items])
    assert len(round_trips) == 4
    assert [item.ending for item in items] == ["completed"] * 3
    assert [ourvidz_eager.record(item.job.id).status for item in items] == ["completed"] * 3


def test_a_record_that_cannot_be_read_disturbs_no_other_job_of_the_batch(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """Of several jobs in one round trip each is claimed, streamed and ended as if it were alone."""
    records = [queue(name) for name in ("a", "b", "c", "d")]
    damage(ourvidz_eager, "c")
    won = claim_companions(records[1:], worker_id=WORKER, beside="a")
    assert [claim and claim.job_id for claim in won] == ["b", None, "d"]
    jobs = start("a")
    items = [jobs.first, *(ClaimedItem(claim, "chat", retry_delay_s=0) for claim in won if claim is not None)]
    damage(ourvidz_eager, "b")
    first, second, third = jobs.stream_texts([StreamPart(item, "Once", 1, 8) for item in items])
    assert (first, third) == (True, True)
    assert isinstance(second, ResponseError)
    assert streamed(ourvidz_eager, "a") == streamed(ourvidz_eager, "d") == ["Once"]
    jobs.end([(item, DONE) for item in items])
    assert [item.ending for item in items] == ["completed", "lost", "completed"]


def test_jobs_that_were_cancelled_or_claimed_elsewhere_are_told_apart_in_one_answer(
    queue: Callable[..., Record], start: Callable[..., ClaimedJobs], ourvidz_eager: Eager
) -> None:
    """The answers come in the order of the texts."""
    for name in ("a", "b", "c"):
        queue(name)
    jobs = start("a")
    items = [jobs.first, *join(jobs)]
    ledger = ourvidz_eager.control.ledger
    ledger.request_cancel("b")
    lost = ourvidz_eager.record("c")
    assert ledger.rescue(lost, counted=False)
    first, cancelled, lost_fence = jobs.stream_texts([StreamPart(item, "Once", 1, 8) for item in items])
    assert first is True
    assert isinstance(cancelled, Cancelled)
    assert isinstance(lost_fence, FenceLost)
    jobs.end([(item, DONE) for item in items])
    assert [item.ending for item in items] == ["completed", "completed", "lost"]
