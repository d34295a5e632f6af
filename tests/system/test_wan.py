"""Wan jobs through a worker of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.media.video import probe

pytestmark = pytest.mark.system

CLIP = {
    "type": "video_fast",
    "prompt": "a comet above hills",
    "config": {"steps": 2, "frames": 6, "fps": 12, "seed": 3},
}


@pytest.mark.timeout(300)
def test_a_wan_worker_makes_clips_and_pictures_and_hears_a_cancel(stack: Callable[..., Any]) -> None:
    """The whole road of the second family, from `ourvidz up --workers wan` to the receiver."""
    with stack("--workers", "wan") as running:
        assert set(running.ready["pids"]) == {"redis", "wan", "web", "io", "keeper", "clock"}
        health = running.get("/health").json()
        assert (health["wan_model_loaded"], health["model_loaded"]) == (True, False)
        assert running.get("/status", worker_type="wan").json()["model"].startswith("tiny-wan")
        (model,) = running.get("/model/info").json()["models"]
        assert (model["family"], model["info"]["loaded"]) == ("wan", True)

        running.submit("long", **CLIP | {"config": {"steps": 100, "frames": 161}})
        running.submit("clip", **CLIP)
        running.submit("words", **CLIP | {"type": "image7b_fast_enhanced", "config": {"steps": 2}})
        running.wait_for(lambda: running.job("long")["progress"] > 0, "the long clip made no step", 60)
        assert running.post("/jobs/long/cancel").status_code == 200
        assert running.wait_done("long")["status"] == "cancelled"

        job = running.wait_done("clip")
        assert job["status"] == "completed", job
        clip = running.get(job["result"]["videoUrl"].removeprefix(running.shim))
        assert clip.headers["content-type"] == "video/mp4"
        found = probe(clip.content)
        assert (found.frames, found.fps) == (6, 12)
        (asset,) = running.wait_callbacks("clip", "processing", "completed")[-1]["payload"]["assets"]
        assert (asset["metadata"]["frames"], asset["metadata"]["frames_generated"]) == (6, 9)
        assert running.get(f"/assets/{asset['thumbnail_url']}").status_code == 200

        assert running.wait_done("words")["status"] == "completed"
        told = running.wait_callbacks("words", "processing", "completed")[-1]["payload"]
        assert told["enhancedPrompt"] == CLIP["prompt"]
        assert told["metadata"]["enhancement_strategy"] == "fallback"
        assert told["worker_id"].startswith("wan@")
        assert running.stop() == 0
