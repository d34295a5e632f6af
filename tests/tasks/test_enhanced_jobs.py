"""Wan jobs whose prompt is enhanced first: the chain of two messages, and what its caller hears."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.celery_settings import ENHANCE_TASK, GENERATION_TASKS
from ourvidz.errors import ModelLoadError, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.tasks import enhancement, wan
from ourvidz.testing import Eager
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
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"].startswith("tiny-qwen")
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
        found = ourvidz_eager.record("a").enhancement_result
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
        assert (record.status, record.attempt, record.enhancement_result) == ("cancelled", 0, None)
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


def test_the_enhancement_is_no_generation() -> None:
    """Else the signals around tasks would claim the job for it."""
    assert ENHANCE_TASK not in GENERATION_TASKS
    assert app.conf.task_routes[ENHANCE_TASK] == {"queue": "chat_queue"}
