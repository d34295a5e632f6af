from __future__ import annotations

from typing import Any

from ourvidz.jobs.job import VideoJob
from ourvidz.workflows.enhancement import wording


def job(**changed: Any) -> VideoJob:
    fields: dict[str, Any] = {
        "id": "job-1",
        "type": "video7b_fast_enhanced",
        "user_id": "user-1",
        "expected_time": 180,
        "prompt": "a kite over dunes",
        "steps": 2,
        "guidance_scale": 6.5,
        "width": 32,
        "height": 48,
        "frames": 5,
        "seed": 100,
    }
    return VideoJob(**(fields | changed))


def test_a_job_that_wants_no_enhancement_is_told_nothing_about_it() -> None:
    """`enhancedPrompt` stays null, whatever the type is called."""
    words = wording(job(enhance_prompt=False))
    assert (words.prompt, words.enhanced_prompt, words.told) == ("a kite over dunes", None, {})


def test_without_a_chat_worker_the_prompt_is_used_as_it_is_and_that_is_said() -> None:
    """The job goes on; its caller learns that the words are its own and that no system prompt was read."""
    words = wording(job(enhance_prompt=True, system_prompt="be brief"))
    assert words.prompt == words.enhanced_prompt == "a kite over dunes"
    assert words.told["enhancement_strategy"] == "fallback"
    assert "no chat worker" in words.told["enhancement_reason"]
    assert (words.told["enhancement_source"], words.told["system_prompt_used"]) == (None, "none")
