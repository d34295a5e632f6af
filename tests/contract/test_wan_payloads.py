"""The sample requests for Wan, run end to end: HTTP, the packaged checkpoint, storage, callbacks."""

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

from ourvidz.auditing.checkpoints import FOLDER as AUDIT
from ourvidz.jobs.catalog import lookup
from ourvidz.media import video
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.media.video import probe
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.web.main import create_app
from ourvidz.wiring.control import TINY_WAN_SIZE


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def is_wan(path: Path) -> bool:
    payload = load(path)["payload"]
    row = lookup(str(payload.get("type"))) if isinstance(payload, dict) else None
    return row is not None and row.family == "wan"


PATHS = [path for path in sorted((Path(__file__).parent / "payloads").glob("*.json")) if is_wan(path)]
SAMPLES = [path for path in PATHS if load(path)["expect"]["status"] == 202]
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


def store_references(payload: dict[str, Any], image: Image.Image, eager: Eager) -> None:
    """Store an image under every storage path in the payload."""
    for value in payload.get("config", {}).values():
        if isinstance(value, str) and value.startswith("user-library/"):
            eager.control.store.put(value, encode_png(image), content_type="image/png")


def test_the_samples_cover_the_reference_modes() -> None:
    """All but `end`, which has a test of its own."""
    assert len(SAMPLES) >= 6
    modes = {load(path)["expect"]["job"].get("reference_mode", "none") for path in SAMPLES}
    assert {"none", "single", "start", "both"} <= modes


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_completes_with_its_clip_and_callbacks(
    client: TestClient, running: Eager, host: str, reference_image: Image.Image, path: Path
) -> None:
    """For five generations of callers: clip, asset metadata and callback agree with the request."""
    document = load(path)
    payload = json.loads(json.dumps(document["payload"]).replace(HOST, f"http://{host}"))
    store_references(payload, reference_image, running)
    answer = client.post("/jobs", json=payload)
    assert (answer.status_code, answer.json()["queue"]) == (202, "wan_queue"), answer.text
    job = running.document(payload["id"])
    received = running.callbacks.of(payload["id"])
    assert [one.payload["status"] for one in received] == ["processing", "completed"]
    assert [one.payload["sequence"] for one in received] == [1, 2]
    assert all(one.verified for one in received)
    callback = received[-1].payload
    assert callback["metadata"]["seed"] == answer.json()["seed"] == job["seed"]
    expected = document["expect"]["job"] | {"width": job["width"], "height": job["height"]}
    check_completed(callback, job, expected, running)
    check_document(client.get(f"/jobs/{payload['id']}").json(), callback)


def check_document(document: dict[str, Any], callback: dict[str, Any]) -> None:
    """Check that a polling caller gets the same result as the callback."""
    assert (document["status"], document["progress"], document["error"]) == ("completed", 100, None)
    assert document["result"]["assets"] == callback["assets"]
    assert document["result"]["videoUrl"].endswith(callback["assets"][0]["url"])
    assert document["result"]["imageUrl"] is None


def check_completed(
    callback: dict[str, Any], job: dict[str, Any], expected: dict[str, Any], eager: Eager
) -> None:
    """Check the clip, its thumbnail and their metadata against the job."""
    (asset,) = callback["assets"]
    metadata, details = callback["metadata"], asset["metadata"]
    assert asset["type"] == "video"
    assert asset["url"] == f"{job['bucket']}/{job['user_id']}/{job['id']}/0.mp4"
    assert asset["thumbnail_url"].endswith("/0.thumb.webp")

    file, small = (eager.control.store.get(asset[name]) for name in ("url", "thumbnail_url"))
    probed = probe(file)
    assert details["file_size_bytes"] == len(file)
    assert Image.open(io.BytesIO(small)).size == (probed.width, probed.height)
    assert (probed.frames, probed.fps) == (job["frames"], job["fps"])
    assert (probed.width, probed.height) == (details["width"], details["height"])
    assert {name: details[name] for name in VIDEO_FIELDS} == {
        "fps": job["fps"],
        "frames": job["frames"],
        "frames_generated": 1 + 4 * -(-(job["frames"] - 1) // 4),
        "duration_seconds": round(job["frames"] / job["fps"], 3),
    }
    assert (details["format"], details["seed"], details["asset_index"]) == ("mp4", job["seed"], 0)
    assert max(details["width"], details["height"]) == TINY_WAN_SIZE[0]
    assert metadata["size_capped"] == (max(job["width"], job["height"]) > TINY_WAN_SIZE[0])

    mode = expected.get("reference_mode", "none")
    assert metadata.get("reference_backend") == BACKENDS[mode]
    assert REFERENCE_FIELDS & set(details) == (set() if mode == "none" else REFERENCE_FIELDS)
    source = "trainedAlgorithmicMedia" if mode == "none" else "compositeWithTrainedAlgorithmicMedia"
    assert [read_source_type(data) for data in (file, small)] == [VOCABULARY + source] * 2
    assert "reference_fallback" not in metadata
    assert {name: metadata[name] for name in ("job_type", "content_type", "wan_task", "frame_num")} == {
        "job_type": job["type"],
        "content_type": "video",
        "wan_task": "t2v-1.3B",
        "frame_num": job["frames"],
    }
    assert metadata["reference_mode"] == mode
    assert (metadata["num_images"], metadata["batch_size"]) == (1, 1)
    assert metadata["generation_time"] > 0
    check_enhancement(callback, job)


def check_enhancement(callback: dict[str, Any], job: dict[str, Any]) -> None:
    """Check that the prompt was enhanced if the job asks for it, and that the callback has both prompts."""
    metadata = callback["metadata"]
    assert metadata["original_prompt"] == job["prompt"]
    if job["enhance_prompt"]:
        assert metadata["enhancement_strategy"] == "qwen"
        assert metadata["enhancement_source"] == "qwen_base"
        assert metadata["enhancement_model"] == "tiny-qwen/base"
        assert metadata["system_prompt_used"] == ("custom" if job["system_prompt"] else "default")
        assert callback["enhancedPrompt"]
    else:
        assert (callback["enhancedPrompt"], metadata["enhancement_strategy"]) == (None, "none")


@pytest.mark.parametrize("kind", ["image_fast", "image7b_high_enhanced"])
def test_an_image_type_generates_one_png(ourvidz_eager: Eager, kind: str) -> None:
    """Without the fields of a clip: callers show it in an img element."""
    config = {"steps": 2, "seed": 5}
    ourvidz_eager.submit({"id": "one", "type": kind, "prompt": "a star", "user_id": "me", "config": config})
    callback = ourvidz_eager.callbacks.of("one")[-1].payload
    job = ourvidz_eager.document("one")
    (asset,) = callback["assets"]
    assert (callback["status"], asset["type"], asset["metadata"]["format"]) == ("completed", "image", "png")
    assert not VIDEO_FIELDS & set(asset["metadata"])
    assert (callback["metadata"]["frame_num"], callback["metadata"]["content_type"]) == (1, "image")
    image = Image.open(io.BytesIO(ourvidz_eager.control.store.get(asset["url"])))
    assert (image.format, image.size) == ("PNG", TINY_WAN_SIZE)
    check_enhancement(callback, job)


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_refused_sample_leaves_no_job_or_callback(client: TestClient, running: Eager, path: Path) -> None:
    """The response names the wrong field."""
    expected = load(path)["expect"]
    answer = client.post("/jobs", json=load(path)["payload"])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (expected["status"], expected["error"]["code"])
    assert expected["error"]["field"] in problem["field"]
    assert client.get("/jobs").json()["items"] == []
    assert running.callbacks.received == []


def clip_payload(config: dict[str, Any]) -> dict[str, Any]:
    """The payload of a small clip; `config` is added."""
    config = {"steps": 2, "frames": 6, "seed": 5} | config
    return {"id": "one", "type": "video_fast", "prompt": "a comet", "user_id": "me", "config": config}


def test_a_clip_that_exceeds_the_frame_pixel_limit_is_refused(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder
) -> None:
    """With field, value and limit in the error, and nothing queued; the largest allowed clip is generated."""
    limit = 6 * 64 * 64
    with (
        eager(tmp_path, ourvidz_callbacks, OURVIDZ_WAN_MAX_FRAME_PIXELS=str(limit)) as system,
        TestClient(create_app(system.control), base_url="http://127.0.0.1:7860") as client,
    ):
        answer = client.post("/jobs", json=clip_payload({"frames": 7}))
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "INVALID_PARAMETERS")
        assert (problem["field"], problem["value"]) == ("config.frames", 7 * 64 * 64)
        assert str(limit) in problem["rule"]
        assert client.get("/jobs").json()["items"] == []
        assert system.callbacks.received == []
        assert client.post("/jobs", json=clip_payload({"frames": 6})).status_code == 202
        assert system.callbacks.statuses("one") == ["processing", "completed"]


def test_a_clip_may_have_an_end_reference_only(client: TestClient, running: Eager, host: str) -> None:
    """No sample has this mode."""
    assert (
        client.post("/jobs", json=clip_payload({"last_frame": f"http://{host}/end.png"})).status_code == 202
    )
    callback = running.callbacks.of("one")[-1].payload
    check_completed(callback, running.document("one"), {"reference_mode": "end"}, running)


def test_an_unreachable_reference_falls_back_to_the_prompt_alone(client: TestClient, running: Eager) -> None:
    """The clip is that of the prompt, and the callback has the reason."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{closed.getsockname()[1]}/start.png"
        assert client.post("/jobs", json=clip_payload({"first_frame": unreachable})).status_code == 202
    callback = running.callbacks.of("one")[-1].payload
    metadata, (asset,) = callback["metadata"], callback["assets"]
    assert (callback["status"], metadata["reference_fallback"]) == ("completed", True)
    assert (metadata["reference_error"], metadata["reference_backend"]) == ("REFERENCE_FRAME_ERROR", None)
    assert metadata["reference_error_reason"]
    assert metadata["reference_mode"] == "start"
    assert asset["metadata"]["pipeline"] == "text_to_video"
    client.post("/jobs", json=clip_payload({}) | {"id": "plain"})
    plain = running.callbacks.of("plain")[-1].payload["assets"][0]
    assert running.control.store.get(asset["url"]) == running.control.store.get(plain["url"])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda encode, frames, *rest: encode(frames, *rest)[:-200], id="cut off"),
        pytest.param(lambda encode, frames, *rest: encode(frames[:-1], *rest), id="a frame lost"),
    ],
)
def test_a_broken_clip_fails_the_job_and_is_not_stored(
    client: TestClient, running: Eager, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., bytes]
) -> None:
    """A file that does not play is worse than a failed job."""
    monkeypatch.setattr(video, "_encode", partial(broken, video._encode))
    assert client.post("/jobs", json=clip_payload({})).status_code == 202
    callback = running.callbacks.of("one")[-1].payload
    assert (callback["status"], callback["error"]["code"], callback["assets"]) == (
        "failed",
        "INTERNAL_ERROR",
        [],
    )
    assert client.get("/jobs/one").json()["status"] == "failed"
    files = (path for path in running.storage.rglob("*") if path.is_file())
    assert [path for path in files if not path.is_relative_to(running.storage / AUDIT)] == []
