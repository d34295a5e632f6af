"""The sample requests for Wan, run for real: what callers in the field send, and what they hear."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.jobs.catalog import lookup
from ourvidz.media.video import probe
from ourvidz.testing import Eager
from ourvidz.web import views
from ourvidz.wiring.control import TINY_WAN_SIZE


def sample(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def is_wan(path: Path) -> bool:
    document = sample(path)
    row = lookup(str(document["payload"].get("type"))) if isinstance(document["payload"], dict) else None
    return row is not None and row.family == "wan" and document["expect"]["status"] == 202


SAMPLES = [path for path in sorted((Path(__file__).parent / "payloads").glob("*.json")) if is_wan(path)]
VIDEO_FIELDS = {"fps", "frames", "frames_generated", "duration_seconds"}
REFERENCE_FIELDS = {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"}
BACKENDS = {
    "none": None,
    "single": "sdedit",
    "start": "latent_replacement",
    "end": "latent_replacement",
    "both": "latent_replacement",
}


def hills() -> bytes:
    """A picture that is wider than high."""
    gradient = Image.linear_gradient("L").resize((80, 48))
    file = io.BytesIO()
    Image.merge("RGB", (gradient, gradient.rotate(180), gradient)).save(file, "PNG")
    return file.getvalue()


def reachable(payload: Any) -> Any:
    """The payload with a data URI wherever it names a host that does not exist."""
    if isinstance(payload, dict):
        return {name: reachable(value) for name, value in payload.items()}
    if isinstance(payload, str) and payload.startswith("https://assets.example.com/"):
        return "data:image/png;base64," + base64.b64encode(hills()).decode()
    return payload


def stored_references(payload: dict[str, Any], eager: Eager) -> None:
    """Put a picture where the payload's storage paths lead."""
    for value in payload.get("config", {}).values():
        if isinstance(value, str) and value.startswith("user-library/"):
            eager.control.store.put(value, hills(), content_type="image/png")


def test_the_samples_cover_every_way_to_ask_for_a_clip() -> None:
    """A sample that is not in the list would be run by nobody."""
    assert len(SAMPLES) >= 6
    modes = {sample(path)["expect"]["job"].get("reference_mode", "none") for path in SAMPLES}
    assert {"none", "single", "start", "both"} <= modes


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_makes_its_clip_and_its_callback(ourvidz_eager: Eager, path: Path) -> None:
    """Five generations of callers, one pipeline: the clip has the frames that were asked for, and says so."""
    document = sample(path)
    payload = reachable(document["payload"])
    stored_references(payload, ourvidz_eager)
    ourvidz_eager.submit(payload)
    asked = ourvidz_eager.document(payload["id"])
    received = ourvidz_eager.callbacks.of(payload["id"])
    assert [one.payload["status"] for one in received] == ["processing", "completed"]
    assert all(one.verified for one in received)
    expected = document["expect"]["job"] | {"width": asked["width"], "height": asked["height"]}
    check_completed(received[-1].payload, asked, expected, ourvidz_eager)


def check_completed(
    told: dict[str, Any], asked: dict[str, Any], expected: dict[str, Any], eager: Eager
) -> None:
    """What a receiver stores and shows."""
    (asset,) = told["assets"]
    facts, made = told["metadata"], asset["metadata"]
    assert asset["type"] == "video"
    assert asset["url"] == f"{asked['bucket']}/{asked['user_id']}/{asked['id']}/0.mp4"
    assert asset["thumbnail_url"].endswith("/0.thumb.webp")

    found = probe(eager.control.store.get(asset["url"]))
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
    """Nobody enhances in this version: the words are the caller's own, and who asked is told so."""
    wanted = asked["enhance_prompt"]
    assert told["enhancedPrompt"] == (asked["prompt"] if wanted else None)
    assert told["metadata"]["enhancement_strategy"] == ("fallback" if wanted else "none")
    assert ("enhancement_reason" in told["metadata"]) == wanted
    assert told["metadata"]["original_prompt"] == asked["prompt"]


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


def test_the_job_document_has_the_clip_s_url(ourvidz_eager: Eager) -> None:
    """A caller that polls plays what it finds under `videoUrl`."""
    config = {"steps": 1, "frames": 5}
    ourvidz_eager.submit(
        {"id": "one", "type": "video_fast", "prompt": "a comet", "user_id": "me", "config": config}
    )
    at = ourvidz_eager.control
    result = views.state(ourvidz_eager.record("one"), at.ledger, at.store).result
    assert result is not None
    assert (result.videoUrl, result.imageUrl) == ("workspace-temp/me/one/0.mp4", None)
