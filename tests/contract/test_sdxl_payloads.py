"""The sample requests for SDXL, run end to end: HTTP, the packaged checkpoint, storage, callbacks."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ourvidz import __version__
from ourvidz.jobs.catalog import lookup
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.testing import Eager

HOST = "https://assets.example.com"
EDGE_PX = 128
"""The native size of tiny-sdxl: larger requests are rendered with this as their longest edge."""
REFERENCE_FIELDS = {"denoise_strength", "pipeline", "resize_policy", "negative_prompt_used"}


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def is_sdxl(path: Path) -> bool:
    payload = load(path)["payload"]
    row = lookup(str(payload.get("type"))) if isinstance(payload, dict) else None
    return row is not None and row.family == "sdxl"


SAMPLES = [path for path in sorted((Path(__file__).parent / "payloads").glob("*.json")) if is_sdxl(path)]
ACCEPTED = [path for path in SAMPLES if load(path)["expect"]["status"] == 202]
REFUSED = [path for path in SAMPLES if path not in ACCEPTED]


@dataclass(frozen=True)
class Expected:
    """The metadata of one sample: of each asset, of the job, and what a reference adds to each asset."""

    asset: dict[str, Any]
    job: dict[str, Any]
    reference: dict[str, Any]


def expected_of(
    size: tuple[int, int], steps: tuple[int, int], guidance: float, *, capped: bool = False, **job: Any
) -> Expected:
    """The metadata of a sample. `steps`: requested and run; `job`: what differs from a plain job."""
    reference = {name: job.pop(name) for name in sorted(REFERENCE_FIELDS) if name in job}
    return Expected(
        {
            "width": size[0],
            "height": size[1],
            "steps": steps[0],
            "effective_steps": steps[1],
            "guidance_scale": guidance,
        },
        {
            "size_capped": capped,
            "reference_mode": "single" if reference else "none",
            "i2i_mode": None,
            "exact_copy_mode": False,
            "compel_enabled": False,
            "compel_weights": None,
            "compel_success": False,
            "enhancement_strategy": "none",
            "final_prompt_type": "string",
        }
        | job,
        reference,
    )


def reference_fields(denoise: float, *, negative: bool) -> dict[str, Any]:
    return {
        "denoise_strength": denoise,
        "pipeline": "img2img",
        "resize_policy": "center_crop",
        "negative_prompt_used": negative,
    }


SQUARE = (EDGE_PX, EDGE_PX)
EXPECTED = {
    "01-july16-sdxl": expected_of(
        SQUARE,
        (15, 15),
        6.0,
        capped=True,
        expected_time=30,
        image_id="7b1d9e00-0000-4000-8000-000000000901",
        model_variant="lustify_sdxl",
        created_at="2025-07-16T10:00:00Z",
    ),
    "04-july20-sdxl-compel": expected_of(
        SQUARE,
        (25, 15),
        7.5,
        i2i_mode="modify",
        compel_enabled=True,
        compel_weights="(highly detailed:1.3), (sharp focus:1.2), (soft light:1.1)",
        compel_success=True,
        enhancement_strategy="compel",
        final_prompt_type="conditioning_tensor",
        reference_backend="img2img",
        **reference_fields(0.6, negative=False),
    ),
    "06-aug16-sdxl": expected_of((128, 88), (20, 20), 5.5, capped=True),
    "08-aug18-exact-copy": expected_of(
        SQUARE,
        (10, 10),
        1.0,
        i2i_mode="copy",
        exact_copy_mode=True,
        reference_backend="img2img",
        **reference_fields(0.05, negative=False),
    ),
    "09-aug18-modify": expected_of(
        SQUARE,
        (30, 7),
        4.0,
        i2i_mode="modify",
        reference_backend="img2img",
        **reference_fields(0.25, negative=False),
    ),
    "10-live-edge-sdxl": expected_of((128, 72), (20, 20), 6.0, capped=True, nsfw_optimization=False),
}


def test_every_accepted_sample_has_expected_metadata() -> None:
    """A sample without a row would not be run."""
    assert [path.stem for path in ACCEPTED] == sorted(EXPECTED)
    assert len(REFUSED) >= 11


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_a_sample_completes_with_its_images_and_callbacks(
    client: TestClient, running: Eager, host: str, reference_image: Image.Image, path: Path
) -> None:
    """For five generations of callers: images, asset metadata and callback agree with the request."""
    request = json.loads(json.dumps(load(path)["payload"]).replace(HOST, f"http://{host}"))
    answer = client.post("/jobs", json=request)
    assert (answer.status_code, answer.json()["queue"]) == (202, "sdxl_queue"), answer.text
    received = running.callbacks.of(request["id"])
    assert [one.payload["status"] for one in received] == ["processing", "completed"]
    assert [one.payload["sequence"] for one in received] == [1, 2]
    assert all(one.verified for one in received)

    callback, expected = received[-1].payload, EXPECTED[path.stem]
    assert callback["metadata"]["seed"] == answer.json()["seed"]
    assert callback["metadata"]["seed"] == load(path)["expect"]["job"].get(
        "seed", callback["metadata"]["seed"]
    )
    check_job(callback, request, expected)
    images = check_assets(callback, request, expected, running)
    if expected.job["i2i_mode"] == "copy":
        middle = np.asarray(reference_image.crop((16, 0, 144, 128))).astype(int)
        assert np.abs(images[0] - middle).mean() < 8
    check_document(client.get(f"/jobs/{request['id']}").json(), callback)


def check_job(callback: dict[str, Any], request: dict[str, Any], expected: Expected) -> None:
    """Check the job metadata of a callback."""
    metadata, count = callback["metadata"], request["config"].get("num_images", 1)
    row = lookup(request["type"])
    assert row is not None
    assert {name: metadata[name] for name in expected.job} == expected.job
    fixed = {
        "job_type": request["type"],
        "content_type": "image",
        "num_images": count,
        "batch_size": count,
        "frame_num": 1,
        "wan_task": None,
        "enhancement_source": None,
        "unrestricted_mode": False,
        "system_prompt_used": "none",
        "nsfw_optimization": False,
        "original_prompt": request["prompt"],
        "worker_version": __version__,
        "expected_time": row.expected_s[1],
    }
    assert {name: metadata[name] for name in fixed} == fixed
    assert ("reference_backend" in metadata) == bool(expected.reference)
    assert "reference_fallback" not in metadata
    assert 0 < metadata["generation_time"] <= metadata["processing_time"]
    assert metadata["queue_time"] >= 0
    assert metadata["performance_ratio"] == round(metadata["generation_time"] / metadata["expected_time"], 2)
    assert (callback["enhancedPrompt"], callback["error"], callback["error_message"]) == (None, None, None)


def check_assets(
    callback: dict[str, Any], request: dict[str, Any], expected: Expected, running: Eager
) -> list[Any]:
    """Check that every asset can be read and agrees with its metadata; return the images as arrays."""
    count, bucket = request["config"].get("num_images", 1), request.get("bucket", "workspace-temp")
    source = "compositeWithTrainedAlgorithmicMedia" if expected.reference else "trainedAlgorithmicMedia"
    folder = f"{bucket}/{request['user_id']}/{request['id']}"
    assert len(callback["assets"]) == count
    images = []
    for index, asset in enumerate(callback["assets"]):
        assert asset["type"] == "image"
        assert asset["url"] == f"{folder}/{index}.png"
        assert asset["thumbnail_url"] == f"{folder}/{index}.thumb.webp"
        file, small = (running.control.store.get(asset[name]) for name in ("url", "thumbnail_url"))
        image, thumbnail = (Image.open(io.BytesIO(data)) for data in (file, small))
        size = (expected.asset["width"], expected.asset["height"])
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
        assert (thumbnail.format, thumbnail.size) == ("WEBP", size)
        assert [read_source_type(data) for data in (file, small)] == [VOCABULARY + source] * 2
        assert asset["metadata"] == expected.asset | expected.reference | {
            "format": "png",
            "batch_size": count,
            "seed": callback["metadata"]["seed"] + index,
            "file_size_bytes": len(file),
            "asset_index": index,
        }
        images.append(np.asarray(image).astype(int))
    assert all((one != other).any() for one, other in combinations(images, 2))
    return images


def check_document(document: dict[str, Any], callback: dict[str, Any]) -> None:
    """Check that a polling caller gets the same result as the callback."""
    assert (document["status"], document["progress"], document["error"]) == ("completed", 100, None)
    assert document["result"]["assets"] == callback["assets"]
    assert document["result"]["imageUrl"].endswith(callback["assets"][0]["url"])
    assert document["result"]["videoUrl"] is None


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_refused_sample_leaves_no_job_callback_or_file(
    client: TestClient, running: Eager, path: Path
) -> None:
    """The response names the wrong field."""
    expected = load(path)["expect"]
    answer = client.post("/jobs", json=load(path)["payload"])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (expected["status"], expected["error"]["code"])
    assert expected["error"]["field"] in problem["field"]
    assert client.get("/jobs").json()["items"] == []
    assert running.callbacks.received == []
    assert not running.storage.exists() or not any(running.storage.rglob("*.png"))
