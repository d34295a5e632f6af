"""Wan jobs on a real stack."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ourvidz.media.video import probe
from ourvidz.workflows.run import GENERATION_PROGRESS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CLIP = {
    "type": "video_fast",
    "prompt": "a comet above hills",
    "config": {"steps": 2, "frames": 6, "fps": 12, "seed": 3},
}

LONG = {"steps": 100, "frames": 33}
"""Several seconds of work on two cores."""


@pytest.fixture(scope="module")
def running(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack for all faults: it recovers after each."""
    variables = {"OURVIDZ_PREEMPT_EVERY_S": "0.3"}
    with stacks(tmp_path_factory.mktemp("wan"), "--workers", "wan", env=variables) as running:
        yield running


def start_long(running: Any, job_id: str, *, progress: float = 10) -> dict[str, Any]:
    """Submit a long clip and wait until its progress reaches `progress`; return the submission's response."""
    answer: dict[str, Any] = running.submit(job_id, **CLIP | {"config": LONG})
    for item in running.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] >= progress:
            return answer
    raise AssertionError(f"{job_id} ended before it had made enough progress: {running.job(job_id)}")


def steps_reported(running: Any, job_id: str) -> int:
    """How many steps of a long clip its recorded progress stands for."""
    return round(running.record(job_id).progress / GENERATION_PROGRESS * LONG["steps"])


def files_of(running: Any, job_id: str) -> dict[str, bytes]:
    """The stored clip and its thumbnail, read over HTTP."""
    (asset,) = running.wait_done(job_id)["result"]["assets"]
    return {name: running.get(f"/assets/{asset[name]}").content for name in ("url", "thumbnail_url")}


def test_a_wan_worker_runs_clips_and_images_and_can_be_cancelled(stack: Callable[..., Any]) -> None:
    """From `ourvidz up --workers wan` to the callbacks."""
    with stack("--workers", "wan") as running:
        assert set(running.ready["pids"]) == {"redis", "wan", "web", "io", "keeper"}
        health = running.get("/health").json()
        assert (health["wan_model_loaded"], health["model_loaded"]) == (True, False)
        assert running.get("/status", worker_type="wan").json()["model"].startswith("tiny-wan")
        (model,) = running.get("/model/info").json()["models"]
        assert (model["family"], model["info"]["loaded"]) == ("wan", True)

        running.submit("long", **CLIP | {"config": {"steps": 100, "frames": 161}})
        running.submit("clip", **CLIP)
        running.submit("enhanced", **CLIP | {"type": "image7b_fast_enhanced", "config": {"steps": 2}})
        running.wait_for(lambda: running.job("long")["progress"] > 0, "the long clip made no step", 60)
        assert running.post("/jobs/long/cancel").status_code == 200
        assert running.wait_done("long")["status"] == "cancelled"

        job = running.wait_done("clip")
        assert job["status"] == "completed", job
        clip = running.get(job["result"]["videoUrl"].removeprefix(running.shim))
        assert clip.headers["content-type"] == "video/mp4"
        probed = probe(clip.content)
        assert (probed.frames, probed.fps) == (6, 12)
        (asset,) = running.wait_callbacks("clip", "processing", "completed")[-1]["payload"]["assets"]
        assert (asset["metadata"]["frames"], asset["metadata"]["frames_generated"]) == (6, 9)
        assert running.get(f"/assets/{asset['thumbnail_url']}").status_code == 200

        assert running.wait_done("enhanced")["status"] == "completed"
        payload = running.wait_callbacks("enhanced", "processing", "completed")[-1]["payload"]
        assert payload["enhancedPrompt"] == CLIP["prompt"]
        assert payload["metadata"]["enhancement_strategy"] == "fallback"
        assert payload["worker_id"].startswith("wan@")
        assert running.stop() == 0


def test_a_cancelled_clip_stops_long_before_its_end(running: Any) -> None:
    """At its next report, a quarter of a second later at most, and the next job starts at once."""
    start_long(running, "stopped")
    running.submit("next", **CLIP)
    assert running.post("/jobs/stopped/cancel").status_code == 200
    done = steps_reported(running, "stopped")
    assert running.wait_done("stopped")["status"] == "cancelled"
    assert steps_reported(running, "stopped") <= done + 20 < LONG["steps"]
    assert running.job("stopped")["result"] is None
    (*_, callback) = running.wait_callbacks("stopped", "processing", "failed")
    assert callback["payload"]["error"]["code"] == "CANCELLED"
    assert running.wait_done("next")["status"] == "completed"


def test_a_killed_worker_generates_the_same_clip_after_its_restart(running: Any) -> None:
    """The seed is drawn at submission, so all attempts generate the same clip."""
    seed = start_long(running, "killed")["seed"]
    os.kill(running.pool_child("wan"), signal.SIGKILL)
    job = running.wait_done("killed")
    assert (job["status"], job["attempt"]) == ("completed", 2), job
    (*_, callback) = running.wait_callbacks("killed", "processing", "processing", "completed")
    (asset,) = callback["payload"]["assets"]
    assert callback["payload"]["metadata"]["seed"] == asset["metadata"]["seed"] == seed

    running.submit("uninterrupted", **CLIP | {"config": LONG | {"seed": seed}})
    assert running.wait_done("uninterrupted")["attempt"] == 1
    assert files_of(running, "killed") == files_of(running, "uninterrupted")
    assert probe(files_of(running, "killed")["url"]).frames == LONG["frames"]


def test_an_unreachable_reference_falls_back_to_the_prompt_alone(running: Any) -> None:
    """The clip is that of the prompt, and the callback has the reason."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{silent.getsockname()[1]}/start.png"
        running.submit("fell-back", **CLIP | {"config": CLIP["config"] | {"first_frame": unreachable}})
        assert running.wait_done("fell-back")["status"] == "completed"
    (*_, callback) = running.wait_callbacks("fell-back", "processing", "completed")
    metadata = callback["payload"]["metadata"]
    assert (metadata["reference_fallback"], metadata["reference_error"]) == (True, "REFERENCE_FRAME_ERROR")
    assert metadata["reference_error_reason"]
    running.submit("plain", **CLIP)
    assert files_of(running, "fell-back") == files_of(running, "plain")


def test_a_clip_makes_room_for_an_image_and_has_the_same_bytes(running: Any) -> None:
    """Whoever asks for one image must not wait for minutes. Another clip waits its turn."""
    config = LONG | {"seed": 5}
    running.submit("undisturbed", **CLIP | {"config": config})
    expected = files_of(running, "undisturbed")
    running.submit("clip", **CLIP | {"config": config})
    running.wait_for(lambda: running.record("clip").progress > 5, "the clip did not start", 60)
    running.submit("second", **CLIP)
    running.submit(
        "image", type="image_fast", prompt="a comet", config={"steps": 4, "width": 64, "height": 64}
    )
    image = running.wait_done("image")
    assert running.record("clip").status == "processing"
    assert (image["status"], running.record("second").status) == ("completed", "queued")
    assert files_of(running, "clip") == expected
    record = running.record("clip")
    assert (record.attempt, record.failures) == (1, {})
    metadata = record.outcome.metadata
    assert (metadata["preemptions"], metadata["resumed_from_step"] > 0) == (1, True)
    assert metadata["preempted_s"] > 0
    assert not any((running.state_dir / "assets" / "checkpoints" / "jobs").iterdir())
