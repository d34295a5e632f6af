"""Wan jobs with prompt enhancement, from payload to callback, in one process."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.celery_settings import ENHANCE_TASK, GENERATION_TASKS
from ourvidz.errors import ModelLoadError, OutOfMemory
from ourvidz.jobs.outcome import Outcome
from ourvidz.tasks import enhancement
from ourvidz.testing import Eager
from ourvidz.workflows import video
from ourvidz.workflows.enhancement import resolve_prompt

JOB = {
    "id": "a",
    "type": "image7b_fast_enhanced",
    "prompt": "a red circle on a blue background",
    "user_id": "me",
    "config": {"steps": 1, "seed": 3},
}


class TestEnhancedJobs:
    """Eager mode, on the models that ship."""

    def test_the_caller_gets_the_callbacks_of_one_job_and_the_enhanced_prompt(
        self, ourvidz_eager: Eager
    ) -> None:
        """Both tasks together have one `processing` and one terminal callback."""
        ourvidz_eager.submit(JOB)
        assert ourvidz_eager.callbacks.statuses("a") == ["processing", "completed"]
        callback = ourvidz_eager.callbacks.of("a")[-1].payload
        assert callback["enhancedPrompt"].startswith(JOB["prompt"])
        assert callback["enhancedPrompt"] != JOB["prompt"]
        metadata = callback["metadata"]
        assert (metadata["enhancement_strategy"], metadata["system_prompt_used"]) == ("qwen", "default")
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"].startswith("tiny-qwen")
        assert metadata["original_prompt"] == JOB["prompt"]
        record = ourvidz_eager.record("a")
        assert (record.attempt, record.stage, record.enhancement) == (1, None, "over")

    def test_the_enhanced_prompt_is_the_one_that_is_generated_from(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All attempts use the same prompt."""
        used: list[str] = []

        def workflow(job: Any, run: Any, services: Any) -> Outcome:
            used.append(resolve_prompt(job, run).prompt)
            if len(used) == 1:
                raise OutOfMemory("no room")
            return Outcome(status="completed")

        monkeypatch.setattr(video, "generate_video", workflow)
        ourvidz_eager.submit(JOB)
        result = ourvidz_eager.record("a").enhancement_result
        assert result is not None
        assert used == [result["prompt"]] * 2

    def test_a_worker_without_the_model_falls_back_to_the_original_prompt(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The job completes, and the metadata gives the reason."""

        def fail(family: str) -> Any:
            raise ModelLoadError(f"no models for {family}")

        monkeypatch.setattr(enhancement, "services", fail)
        ourvidz_eager.submit(JOB)
        callback = ourvidz_eager.callbacks.of("a")[-1].payload
        assert (callback["status"], callback["enhancedPrompt"]) == ("completed", JOB["prompt"])
        assert callback["metadata"]["enhancement_strategy"] == "fallback"
        assert "failed" in callback["metadata"]["enhancement_reason"]

    def test_a_job_cancelled_while_it_is_enhanced_never_runs(
        self, ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its caller gets the callback of the cancel and no other."""
        monkeypatch.setattr(enhancement.enhancement, "enhance", cancelling(enhancement.enhancement.enhance))
        ourvidz_eager.submit(JOB)
        record = ourvidz_eager.record("a")
        assert (record.status, record.attempt, record.enhancement_result) == ("cancelled", 0, None)
        assert ourvidz_eager.callbacks.statuses("a") == ["failed"]

    def test_enhancement_can_be_switched_off_in_the_payload(self, ourvidz_eager: Eager) -> None:
        """`config.enhance_prompt` overrides the job type."""
        ourvidz_eager.submit(JOB | {"config": {"steps": 1, "enhance_prompt": False}})
        callback = ourvidz_eager.callbacks.of("a")[-1].payload
        assert (callback["enhancedPrompt"], callback["metadata"]["enhancement_strategy"]) == (None, "none")


def cancelling(enhance: Any) -> Any:
    """The enhancement of a job that is cancelled just before it begins."""

    def run(job: Any, open_services: Any, **options: Any) -> Any:
        dispatch.cancel(job.id)
        return enhance(job, open_services, **options)

    return run


def test_the_enhancement_task_is_not_a_generation_task() -> None:
    """Otherwise the signal handlers would claim the job for it."""
    assert ENHANCE_TASK not in GENERATION_TASKS
    assert app.conf.task_routes[ENHANCE_TASK] == {"queue": "chat_queue"}
