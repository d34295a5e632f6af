"""The sample requests for SDXL, run for real: posted over HTTP, painted by the checkpoint that ships, and
told to a receiver."""

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


def sample(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def is_sdxl(path: Path) -> bool:
    payload = sample(path)["payload"]
    row = lookup(str(payload.get("type"))) if isinstance(payload, dict) else None
    return row is not None and row.family == "sdxl"


SAMPLES = [path for path in sorted((Path(__file__).parent / "payloads").glob("*.json")) if is_sdxl(path)]
ACCEPTED = [path for path in SAMPLES if sample(path)["expect"]["status"] == 202]
REFUSED = [path for path in SAMPLES if path not in ACCEPTED]


@dataclass(frozen=True)
class Made:
    """What the contract says of one sample. `reference`: the fields only such assets have."""

    asset: dict[str, Any]
    job: dict[str, Any]
    reference: dict[str, Any]


def made(
    size: tuple[int, int], steps: tuple[int, int], guidance: float, *, capped: bool = False, **job: Any
) -> Made:
    """`steps`: as asked for, and as they run."""
    reference = {name: job.pop(name) for name in sorted(REFERENCE_FIELDS) if name in job}
    return Made(
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


def shaped(denoise: float, *, negative: bool) -> dict[str, Any]:
    return {
        "denoise_strength": denoise,
        "pipeline": "img2img",
        "resize_policy": "center_crop",
        "negative_prompt_used": negative,
    }


SQUARE = (EDGE_PX, EDGE_PX)
MADE = {
    "01-july16-sdxl": made(
        SQUARE,
        (15, 15),
        6.0,
        capped=True,
        expected_time=30,
        image_id="7b1d9e00-0000-4000-8000-000000000901",
        model_variant="lustify_sdxl",
        created_at="2025-07-16T10:00:00Z",
    ),
    "04-july20-sdxl-compel": made(
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
        **shaped(0.6, negative=False),
    ),
    "06-aug16-sdxl": made((128, 88), (20, 20), 5.5, capped=True),
    "08-aug18-exact-copy": made(
        SQUARE,
        (10, 10),
        1.0,
        i2i_mode="copy",
        exact_copy_mode=True,
        reference_backend="img2img",
        **shaped(0.05, negative=False),
    ),
    "09-aug18-modify": made(
        SQUARE,
        (30, 7),
        4.0,
        i2i_mode="modify",
        reference_backend="img2img",
        **shaped(0.25, negative=False),
    ),
    "10-live-edge-sdxl": made((128, 72), (20, 20), 6.0, capped=True, nsfw_optimization=False),
}


def test_every_accepted_sample_says_what_it_makes() -> None:
    """A sample without a row would be run by nobody."""
    assert [path.stem for path in ACCEPTED] == sorted(MADE)
    assert len(REFUSED) >= 11


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_a_sample_makes_its_pictures_and_its_callback(
    client: TestClient, running: Eager, host: str, sun: Image.Image, path: Path
) -> None:
    """Five generations of callers, one pipeline: the pictures are those that were asked for, and say so."""
    payload = json.loads(json.dumps(sample(path)["payload"]).replace(HOST, f"http://{host}"))
    answer = client.post("/jobs", json=payload)
    assert (answer.status_code, answer.json()["queue"]) == (202, "sdxl_queue"), answer.text
    received = running.callbacks.of(payload["id"])
    assert [one.payload["status"] for one in received] == ["processing", "completed"]
    assert [one.payload["sequence"] for one in received] == [1, 2]
    assert all(one.verified for one in received)

    told, expected = received[-1].payload, MADE[path.stem]
    assert told["metadata"]["seed"] == answer.json()["seed"]
    assert told["metadata"]["seed"] == sample(path)["expect"]["job"].get("seed", told["metadata"]["seed"])
    check_job(told, payload, expected)
    pictures = check_assets(told, payload, expected, running)
    if expected.job["i2i_mode"] == "copy":
        middle = np.asarray(sun.crop((16, 0, 144, 128))).astype(int)
        assert np.abs(pictures[0] - middle).mean() < 8
    check_document(client.get(f"/jobs/{payload['id']}").json(), told)


def check_job(told: dict[str, Any], payload: dict[str, Any], expected: Made) -> None:
    """What a receiver files the job under."""
    facts, count = told["metadata"], payload["config"].get("num_images", 1)
    row = lookup(payload["type"])
    assert row is not None
    assert {name: facts[name] for name in expected.job} == expected.job
    fixed = {
        "job_type": payload["type"],
        "content_type": "image",
        "num_images": count,
        "batch_size": count,
        "frame_num": 1,
        "wan_task": None,
        "enhancement_source": None,
        "unrestricted_mode": False,
        "system_prompt_used": "none",
        "nsfw_optimization": False,
        "original_prompt": payload["prompt"],
        "worker_version": __version__,
        "expected_time": row.expected_s[1],
    }
    assert {name: facts[name] for name in fixed} == fixed
    assert ("reference_backend" in facts) == bool(expected.reference)
    assert "reference_fallback" not in facts
    assert 0 < facts["generation_time"] <= facts["processing_time"]
    assert facts["queue_time"] >= 0
    assert facts["performance_ratio"] == round(facts["generation_time"] / facts["expected_time"], 2)
    assert (told["enhancedPrompt"], told["error"], told["error_message"]) == (None, None, None)


def check_assets(told: dict[str, Any], payload: dict[str, Any], expected: Made, running: Eager) -> list[Any]:
    """Every asset is what its metadata says, and can be read; the pictures as levels."""
    count, bucket = payload["config"].get("num_images", 1), payload.get("bucket", "workspace-temp")
    source = "compositeWithTrainedAlgorithmicMedia" if expected.reference else "trainedAlgorithmicMedia"
    folder = f"{bucket}/{payload['user_id']}/{payload['id']}"
    assert len(told["assets"]) == count
    pictures = []
    for index, asset in enumerate(told["assets"]):
        assert asset["type"] == "image"
        assert asset["url"] == f"{folder}/{index}.png"
        assert asset["thumbnail_url"] == f"{folder}/{index}.thumb.webp"
        file, small = (running.control.store.get(asset[name]) for name in ("url", "thumbnail_url"))
        picture, thumbnail = (Image.open(io.BytesIO(data)) for data in (file, small))
        size = (expected.asset["width"], expected.asset["height"])
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", size)
        assert (thumbnail.format, thumbnail.size) == ("WEBP", size)
        assert [read_source_type(data) for data in (file, small)] == [VOCABULARY + source] * 2
        assert asset["metadata"] == expected.asset | expected.reference | {
            "format": "png",
            "batch_size": count,
            "seed": told["metadata"]["seed"] + index,
            "file_size_bytes": len(file),
            "asset_index": index,
        }
        pictures.append(np.asarray(picture).astype(int))
    assert all((one != other).any() for one, other in combinations(pictures, 2))
    return pictures


def check_document(document: dict[str, Any], told: dict[str, Any]) -> None:
    """A caller that polls finds the same as one that is called."""
    assert (document["status"], document["progress"], document["error"]) == ("completed", 100, None)
    assert document["result"]["assets"] == told["assets"]
    assert document["result"]["imageUrl"].endswith(told["assets"][0]["url"])
    assert document["result"]["videoUrl"] is None


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
    assert not running.storage.exists() or not any(running.storage.rglob("*.png"))
