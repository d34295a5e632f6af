"""Enhanced Wan jobs over two workers: a chat worker finds the words, the Wan worker uses them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.system

PROMPT = "a red circle on a blue background"
JOB = {"type": "image7b_fast_enhanced", "prompt": PROMPT, "config": {"steps": 2, "seed": 3}}


def told(running: Any, job_id: str) -> dict[str, Any]:
    """The ending its caller got, after exactly one `processing`."""
    assert running.wait_done(job_id)["status"] == "completed"
    payload: dict[str, Any] = running.wait_callbacks(job_id, "processing", "completed")[-1]["payload"]
    return payload


@pytest.mark.timeout(300)
def test_the_words_come_from_a_chat_worker_while_there_is_one(stack: Callable[..., Any]) -> None:
    """Found, waited for in vain, or nobody there to find them: the job completes, and its caller is told."""
    with stack("--workers", "wan,chat", env={"OURVIDZ_ENHANCE_WITHIN_S": "10"}) as running:
        running.submit("found", **JOB)
        payload = told(running, "found")
        assert payload["worker_id"].startswith("wan@")
        assert payload["enhancedPrompt"] != PROMPT
        assert set(PROMPT.split()) <= set(payload["enhancedPrompt"].replace(",", " ").split())
        metadata = payload["metadata"]
        assert (metadata["enhancement_strategy"], metadata["system_prompt_used"]) == ("qwen", "default")
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"].startswith("tiny-qwen")
        stages = [item.data["stage"] for item in running.ledger.stream("found") if item.kind == "state"]
        assert stages == [None, "enhancing", None, None]

        # It goes on saying that it is there, and takes nothing.
        stopped = running.kill("chat", signal.SIGSTOP)
        running.submit("late", **JOB)
        payload = told(running, "late")
        running.kill("chat", signal.SIGCONT)
        assert stopped == running.pid_of("chat")
        assert payload["enhancedPrompt"] == PROMPT
        assert payload["metadata"]["enhancement_strategy"] == "fallback"
        assert "too long" in payload["metadata"]["enhancement_reason"]

        # The message that comes too late changes nothing, and nothing is left of the chain.
        running.submit("after", **JOB)
        assert told(running, "after")["metadata"]["enhancement_strategy"] == "qwen"
        assert running.record("late").attempt == 1
        running.wait_callbacks("late", "processing", "completed")

        (chat,) = [worker.id for worker in running.ledger.workers() if worker.family == "chat"]
        assert running.post(f"/workers/{chat}/drain").status_code == 200
        running.submit("alone", **JOB)
        payload = told(running, "alone")
        assert payload["enhancedPrompt"] == PROMPT
        assert "no chat worker" in payload["metadata"]["enhancement_reason"]
        assert running.stop() == 0
