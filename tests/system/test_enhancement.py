"""Enhanced Wan jobs over two workers: the chat worker enhances the prompt, the Wan worker generates."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.system

PROMPT = "a red circle on a blue background"
JOB = {"type": "image7b_fast_enhanced", "prompt": PROMPT, "config": {"steps": 2, "seed": 3}}


def completed_payload(running: Any, job_id: str) -> dict[str, Any]:
    """The payload of a job's `completed` callback, after exactly one `processing`."""
    assert running.wait_done(job_id)["status"] == "completed"
    payload: dict[str, Any] = running.wait_callbacks(job_id, "processing", "completed")[-1]["payload"]
    return payload


@pytest.mark.timeout(300)
def test_a_chat_worker_enhances_the_prompt_or_the_original_is_used(stack: Callable[..., Any]) -> None:
    """Enhanced, timed out, or without a chat worker: the job completes, and its callback has the reason."""
    with stack("--workers", "wan,chat", env={"OURVIDZ_ENHANCE_WITHIN_S": "10"}) as running:
        running.submit("enhanced", **JOB)
        payload = completed_payload(running, "enhanced")
        assert payload["worker_id"].startswith("wan@")
        assert payload["enhancedPrompt"] != PROMPT
        assert set(PROMPT.split()) <= set(payload["enhancedPrompt"].replace(",", " ").split())
        metadata = payload["metadata"]
        assert (metadata["enhancement_strategy"], metadata["system_prompt_used"]) == ("qwen", "default")
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"].startswith("tiny-qwen")
        stages = [item.data["stage"] for item in running.ledger.stream("enhanced") if item.kind == "state"]
        assert stages == [None, "enhancing", None, None]

        # A stopped pool: the worker still sends heartbeats, and claims nothing.
        stopped = running.kill("chat", signal.SIGSTOP)
        running.submit("late", **JOB)
        payload = completed_payload(running, "late")
        running.kill("chat", signal.SIGCONT)
        assert stopped == running.pid_of("chat")
        assert payload["enhancedPrompt"] == PROMPT
        assert payload["metadata"]["enhancement_strategy"] == "fallback"
        assert "too long" in payload["metadata"]["enhancement_reason"]

        # The late enhancement message changes nothing.
        running.submit("after", **JOB)
        assert completed_payload(running, "after")["metadata"]["enhancement_strategy"] == "qwen"
        assert running.record("late").attempt == 1
        running.wait_callbacks("late", "processing", "completed")

        (chat,) = [worker.id for worker in running.ledger.workers() if worker.family == "chat"]
        assert running.post(f"/workers/{chat}/drain").status_code == 200
        running.submit("alone", **JOB)
        payload = completed_payload(running, "alone")
        assert payload["enhancedPrompt"] == PROMPT
        assert "no chat worker" in payload["metadata"]["enhancement_reason"]
        assert running.stop() == 0
