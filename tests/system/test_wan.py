"""Wan jobs through a worker of their own."""

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
def house(stacks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One stack for all faults: it must mend itself after each."""
    with stacks(tmp_path_factory.mktemp("house"), "--workers", "wan") as running:
        yield running


def start_long(house: Any, job_id: str, *, progress: float = 10) -> dict[str, Any]:
    """Submit a long clip and wait until it is well under way; what the door answered."""
    answer: dict[str, Any] = house.submit(job_id, **CLIP | {"config": LONG})
    for item in house.client.events(job_id):
        if item.kind == "progress" and item.data["progress"] >= progress:
            return answer
    raise AssertionError(f"{job_id} ended before it could be disturbed: {house.job(job_id)}")


def steps_reported(house: Any, job_id: str) -> int:
    """How many steps of a long clip the ledger knows of."""
    return round(house.record(job_id).progress / GENERATION_PROGRESS * LONG["steps"])


def files_of(house: Any, job_id: str) -> dict[str, bytes]:
    """The stored clip and its thumbnail, as a receiver gets them."""
    (asset,) = house.wait_done(job_id)["result"]["assets"]
    return {name: house.get(f"/assets/{asset[name]}").content for name in ("url", "thumbnail_url")}


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


def test_a_cancelled_clip_stops_within_one_step(house: Any) -> None:
    """Counted in steps: who cancels a clip of minutes does not wait for it, and nor does the next job."""
    start_long(house, "stopped")
    house.submit("next", **CLIP)
    assert house.post("/jobs/stopped/cancel").status_code == 200
    done = steps_reported(house, "stopped")
    assert done < LONG["steps"] - 1
    assert house.wait_done("stopped")["status"] == "cancelled"
    assert steps_reported(house, "stopped") <= done + 1
    assert house.job("stopped")["result"] is None
    (*_, told) = house.wait_callbacks("stopped", "processing", "failed")
    assert told["payload"]["error"]["code"] == "CANCELLED"
    assert house.wait_done("next")["status"] == "completed"


def test_a_worker_killed_at_a_step_makes_the_same_clip_after_its_restart(house: Any) -> None:
    """The seed was drawn at the door: the second attempt writes what the first would have written."""
    seed = start_long(house, "killed")["seed"]
    os.kill(house.computing_child("wan"), signal.SIGKILL)
    job = house.wait_done("killed")
    assert (job["status"], job["attempt"]) == ("completed", 2), job
    (*_, told) = house.wait_callbacks("killed", "processing", "processing", "completed")
    (asset,) = told["payload"]["assets"]
    assert told["payload"]["metadata"]["seed"] == asset["metadata"]["seed"] == seed

    house.submit("undisturbed", **CLIP | {"config": LONG | {"seed": seed}})
    assert house.wait_done("undisturbed")["attempt"] == 1
    assert files_of(house, "killed") == files_of(house, "undisturbed")
    assert probe(files_of(house, "killed")["url"]).frames == LONG["frames"]


def test_a_reference_that_cannot_be_fetched_costs_its_effect_and_not_the_clip(house: Any) -> None:
    """The caller gets the prompt's clip, and is told that no reference shaped it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}/start.png"
        house.submit("fell-back", **CLIP | {"config": CLIP["config"] | {"first_frame": nobody}})
        assert house.wait_done("fell-back")["status"] == "completed"
    (*_, told) = house.wait_callbacks("fell-back", "processing", "completed")
    facts = told["payload"]["metadata"]
    assert (facts["reference_fallback"], facts["reference_error"]) == (True, "REFERENCE_FRAME_ERROR")
    assert facts["reference_error_reason"]
    house.submit("plain", **CLIP)
    assert files_of(house, "fell-back") == files_of(house, "plain")
