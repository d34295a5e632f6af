"""The cost of a job: what it asks for, not what its caller says."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.limits.costs import estimated_s

SDXL = {"id": "j", "type": "sdxl_image_fast", "prompt": "a lake", "user_id": "u"}
CLIP = {**SDXL, "type": "video_fast"}
CHAT = {"id": "j", "type": "chat_conversation", "messages": [{"role": "user", "content": "What is a lake?"}]}


@pytest.mark.parametrize(
    ("payload", "seconds"),
    [
        (SDXL, 30),
        ({**SDXL, "config": {"expected_time": 0.001}, "metadata": {"expected_generation_time": 0.001}}, 30),
        ({**SDXL, "config": {"steps": 30}}, 60),
        ({**SDXL, "config": {"steps": 1}}, 30),
        ({**SDXL, "config": {"width": 2048, "height": 1024}}, 60),
        ({**SDXL, "config": {"num_images": 6}}, 30),
        (CLIP, 180),
        ({**CLIP, "config": {"frames": 161}}, 180 * 161 / 83),
        (CHAT, 15),
        ({**CHAT, "max_tokens": 2048}, 60),
    ],
)
def test_a_job_costs_what_it_asks_for(payload: dict[str, Any], seconds: float) -> None:
    """A caller that names a short time, or asks for more work than usual, gains nothing."""
    assert estimated_s(parse(payload, Defaults())) == pytest.approx(seconds)
