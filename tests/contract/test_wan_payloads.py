"""The sample requests for Wan, run for real: posted over HTTP, made by the checkpoint that ships, and told to
a receiver."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ourvidz.jobs.catalog import lookup
from ourvidz.media import video
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.media.video import probe
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.web.main import create_app
from ourvidz.wiring.control import TINY_WAN_SIZE


def sample(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def is_wan(path: Path) -> bool:
    payload = sample(path)["payload"]
    row = lookup(str(payload.get("type"))) if isinstance(payload, dict) else None
    return row is not None and row.family == "wan"


PATHS = [path for path in sorted((Path(__file__).parent / "payloads").glob("*.json")) if is_wan(path)]
SAMPLES = [path for path in PATHS if sample(path)["expect"]["status"] == 202]
REFUSED = [path for path in PATHS if path not in SAMPLES]
HOST = "https://assets.example.com"
VIDEO_FIELDS = {"fps", "frames", "frames_generated", "duration_seconds"}
REFERENCE_FIELDS = {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"}
BACKENDS = {
    "none": None,
    "single": "sdedit",
    "start": "latent_replacement",
    "end": "latent_replacement",
    "both": "latent_replacement",
}


def stored_references(payload: dict[str, Any], picture: Image.Image, eager: Eager) -> None:
    """Put a picture where the payload's storage paths lead."""
    for value in payload.get("config", {}).values():
        if isinstance(value, str) and value.startswith("user-library/"):
            eager.control.store.put(value, encode_png(picture), content_type="image/png")


def test_the_samples_cover_every_way_to_ask_for_a_clip() -> None:
    """A sample that is not in the list would be run by nobody."""
    assert len(SAMPLES) >= 6
    modes = {sample(path)["expect"]["job"].get("reference_mode", "none") for path in SAMPLES}
    assert {"none", "single", "start", "both"} <= modes


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_makes_its_clip_and_its_callback(
    client: TestClient, running: Eager, host: str, sun: Image.Image, path: Path
) -> None:
    """Five generations of callers, one pipeline: the clip has the frames that were asked for, and says so."""
    document = sample(path)
    payload = json.loads(json.dumps(document["payload"]).replace(HOST, f"http://{host}"))
    stored_references(payload, sun, running)
    answer = client.post("/jobs", json=payload)
    assert (answer.status_code, answer.json()["queue"]) == (202, "wan_queue"), answer.text
    asked = running.document(payload["id"])
    received = running.callbacks.of(payload["id"])
    assert [one.payload["status"] for one in received] == ["processing", "completed"]
    assert [one.payload["sequence"] for one in received] == [1, 2]
    assert all(one.verified for one in received)
    told = received[-1].payload
    assert told["metadata"]["seed"] == answer.json()["seed"] == asked["seed"]
    expected = document["expect"]["job"] | {"width": asked["width"], "height": asked["height"]}
    check_completed(told, asked, expected, running)
    check_document(client.get(f"/jobs/{payload['id']}").json(), told)


def check_document(document: dict[str, Any], told: dict[str, Any]) -> None:
    """A caller that polls finds the same as one that is called."""
    assert (document["status"], document["progress"], document["error"]) == ("completed", 100, None)
    assert document["result"]["assets"] == told["assets"]
    assert document["result"]["videoUrl"].endswith(told["assets"][0]["url"])
    assert document["result"]["imageUrl"] is None


def check_completed(
    told: dict[str, Any], asked: dict[str, Any], expected: dict[str, Any], eager: Eager
) -> None:
    """What a receiver stores and shows."""
    (asset,) = told["assets"]
    facts, made = told["metadata"], asset["metadata"]
    assert asset["type"] == "video"
    assert asset["url"] == f"{asked['bucket']}/{asked['user_id']}/{asked['id']}/0.mp4"
    assert asset["thumbnail_url"].endswith("/0.thumb.webp")

    file, small = (eager.control.store.get(asset[name]) for name in ("url", "thumbnail_url"))
    found = probe(file)
    assert made["file_size_bytes"] == len(file)
    assert Image.open(io.BytesIO(small)).size == (found.width, found.height)
    assert (found.frames, found.fps) == (asked["frames"], asked["fps"])
    assert (found.width, found.height) == (made["width"], made["height"])
    assert {name: made[name] for name in VIDEO_FIELDS} == {
        "fps": asked["fps"],
        "frames": asked["frames"],
        "frames_generated": 1 + 4 * -(-(asked["frames"] - 1) // 4),
        "duration_seconds": round(asked["frames"] / asked["fps"], 3),
    }
    assert (made["format"], made["seed"], made["asset_index"]) == ("mp4", asked["seed"], 0)
    assert max(made["width"], made["height"]) == TINY_WAN_SIZE[0]
    assert facts["size_capped"] == (max(asked["width"], asked["height"]) > TINY_WAN_SIZE[0])

    mode = expected.get("reference_mode", "none")
    assert facts.get("reference_backend") == BACKENDS[mode]
    assert REFERENCE_FIELDS & set(made) == (set() if mode == "none" else REFERENCE_FIELDS)
    source = "trainedAlgorithmicMedia" if mode == "none" else "compositeWithTrainedAlgorithmicMedia"
    assert [read_source_type(data) for data in (file, small)] == [VOCABULARY + source] * 2
    assert "reference_fallback" not in facts
    assert {name: facts[name] for name in ("job_type", "content_type", "wan_task", "frame_num")} == {
        "job_type": asked["type"],
        "content_type": "video",
        "wan_task": "t2v-1.3B",
        "frame_num": asked["frames"],
    }
    assert facts["reference_mode"] == mode
    assert (facts["num_images"], facts["batch_size"]) == (1, 1)
    assert facts["generation_time"] > 0
    check_enhancement(told, asked)


def check_enhancement(told: dict[str, Any], asked: dict[str, Any]) -> None:
    """The words are the language model's where they were asked for, and the caller sees which they are."""
    metadata = told["metadata"]
    assert metadata["original_prompt"] == asked["prompt"]
    if asked["enhance_prompt"]:
        assert metadata["enhancement_strategy"] == "qwen"
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"] == "tiny-qwen/base"
        assert metadata["system_prompt_used"] == ("custom" if asked["system_prompt"] else "default")
        assert told["enhancedPrompt"]
    else:
        assert (told["enhancedPrompt"], metadata["enhancement_strategy"]) == (None, "none")


@pytest.mark.parametrize("kind", ["image_fast", "image7b_high_enhanced"])
def test_a_picture_type_makes_one_png(ourvidz_eager: Eager, kind: str) -> None:
    """Its caller puts it into an img element: no field of a clip is on it."""
    config = {"steps": 2, "seed": 5}
    ourvidz_eager.submit({"id": "one", "type": kind, "prompt": "a star", "user_id": "me", "config": config})
    told = ourvidz_eager.callbacks.of("one")[-1].payload
    asked = ourvidz_eager.document("one")
    (asset,) = told["assets"]
    assert (told["status"], asset["type"], asset["metadata"]["format"]) == ("completed", "image", "png")
    assert not VIDEO_FIELDS & set(asset["metadata"])
    assert (told["metadata"]["frame_num"], told["metadata"]["content_type"]) == (1, "image")
    picture = Image.open(io.BytesIO(ourvidz_eager.control.store.get(asset["url"])))
    assert (picture.format, picture.size) == ("PNG", TINY_WAN_SIZE)
    check_enhancement(told, asked)


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_refused_sample_leaves_nothing_behind(client: TestClient, running: Eager, path: Path) -> None:
    """The caller hears which field was wrong; no job, no callback, no file."""
    expected = sample(path)["expect"]
    answer = client.post("/jobs", json=sample(path)["payload"])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (expected["status"], expected["error"]["code"])
    assert expected["error"]["field"] in problem["field"]
    assert client.get("/jobs").json()["items"] == []
    assert running.callbacks.received == []


def short(config: dict[str, Any]) -> dict[str, Any]:
    """A small job for a clip."""
    config = {"steps": 2, "frames": 6, "seed": 5} | config
    return {"id": "one", "type": "video_fast", "prompt": "a comet", "user_id": "me", "config": config}


def test_a_clip_larger_than_the_gpu_holds_is_refused_at_the_door(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder
) -> None:
    """By the limit's name and number, and nothing is queued; the largest that fits is made."""
    most = 6 * 64 * 64
    with (
        eager(tmp_path, ourvidz_callbacks, OURVIDZ_WAN_MAX_FRAME_PIXELS=str(most)) as system,
        TestClient(create_app(system.control), base_url="http://127.0.0.1:7860") as client,
    ):
        answer = client.post("/jobs", json=short({"frames": 7}))
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "INVALID_PARAMETERS")
        assert (problem["field"], problem["value"]) == ("config.frames", 7 * 64 * 64)
        assert str(most) in problem["rule"]
        assert client.get("/jobs").json()["items"] == []
        assert system.callbacks.received == []
        assert client.post("/jobs", json=short({"frames": 6})).status_code == 202
        assert system.callbacks.statuses("one") == ["processing", "completed"]


def test_a_clip_may_end_on_a_picture_alone(client: TestClient, running: Eager, host: str) -> None:
    """The one mode that no sample shows."""
    assert client.post("/jobs", json=short({"last_frame": f"http://{host}/end.png"})).status_code == 202
    told = running.callbacks.of("one")[-1].payload
    check_completed(told, running.document("one"), {"reference_mode": "end"}, running)


def test_a_reference_that_cannot_be_fetched_falls_back_and_says_so(
    client: TestClient, running: Eager
) -> None:
    """Where nobody listens: the caller gets the prompt's clip, and learns that no reference shaped it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/start.png"
        assert client.post("/jobs", json=short({"first_frame": nobody})).status_code == 202
    told = running.callbacks.of("one")[-1].payload
    facts, (asset,) = told["metadata"], told["assets"]
    assert (told["status"], facts["reference_fallback"]) == ("completed", True)
    assert (facts["reference_error"], facts["reference_backend"]) == ("REFERENCE_FRAME_ERROR", None)
    assert facts["reference_error_reason"]
    assert facts["reference_mode"] == "start"
    assert asset["metadata"]["pipeline"] == "text_to_video"
    client.post("/jobs", json=short({}) | {"id": "plain"})
    plain = running.callbacks.of("plain")[-1].payload["assets"][0]
    assert running.control.store.get(asset["url"]) == running.control.store.get(plain["url"])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda encode, frames, *rest: encode(frames, *rest)[:-200], id="cut off"),
        pytest.param(lambda encode, frames, *rest: encode(frames[:-1], *rest), id="a frame lost"),
    ],
)
def test_a_clip_that_came_out_broken_is_an_error_and_no_asset(
    client: TestClient, running: Eager, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., bytes]
) -> None:
    """A file that does not play is worse than a job that failed: nothing of it is stored or announced."""
    monkeypatch.setattr(video, "_encode", partial(broken, video._encode))
    assert client.post("/jobs", json=short({})).status_code == 202
    told = running.callbacks.of("one")[-1].payload
    assert (told["status"], told["error"]["code"], told["assets"]) == ("failed", "INTERNAL_ERROR", [])
    assert client.get("/jobs/one").json()["status"] == "failed"
    assert not running.storage.exists() or not any(path.is_file() for path in running.storage.rglob("*"))
