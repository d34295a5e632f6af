"""SDXL jobs from payload to callback, with the tiny checkpoint, in one process."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageCms
from safetensors import safe_open
from safetensors.torch import save_file

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters, StorageError
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.storage.local import LocalStore
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import loading
from ourvidz.workflows import run
from ourvidz.workflows.assets import AT_ONCE


def payload(**changed: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "type": "sdxl_image_fast",
        "prompt": "a hill above a lake",
        "user_id": "me",
        "config": {"steps": 3, "width": 64, "height": 64},
    } | changed


def picture() -> str:
    """A reference that needs no network."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ended(running: Eager, asked: dict[str, Any]) -> dict[str, Any]:
    running.submit(asked)
    return running.callbacks.of(asked["id"])[-1].payload


def test_a_reference_goes_from_the_payload_to_the_callback(ourvidz_eager: Eager) -> None:
    """The live edge function's form of a modification, told as the contract words it."""
    reference = {"reference_image_url": picture(), "denoise_strength": 0.7}
    told = ended(ourvidz_eager, payload(metadata=reference, negative_prompt="fog"))
    assert told["status"] == "completed"
    metadata, described = told["metadata"], told["assets"][0]["metadata"]
    assert (metadata["reference_mode"], metadata["i2i_mode"]) == ("single", "modify")
    assert metadata["reference_backend"] == "img2img"
    assert "reference_fallback" not in metadata
    assert (described["steps"], described["effective_steps"], described["denoise_strength"]) == (3, 2, 0.7)
    assert (described["pipeline"], described["resize_policy"]) == ("img2img", "center_crop")
    assert described["negative_prompt_used"] is True


def test_an_exact_copy_goes_from_the_payload_to_the_callback(ourvidz_eager: Eager) -> None:
    """Its numbers are fixed at the door, whatever was asked for, and they are what runs."""
    copy = {"reference_image_url": picture(), "exact_copy_mode": True, "denoise_strength": 0.9}
    told = ended(ourvidz_eager, payload(prompt="", metadata=copy))
    described = told["assets"][0]["metadata"]
    assert (told["metadata"]["i2i_mode"], told["metadata"]["exact_copy_mode"]) == ("copy", True)
    assert (described["effective_steps"], described["guidance_scale"]) == (10, 1.0)
    assert described["denoise_strength"] == 0.05


def test_a_copy_carries_nothing_of_the_reference_but_its_pixels(ourvidz_eager: Eager) -> None:
    """A photo's place, its author and a profile of other colours stay with the caller."""
    exif = Image.Exif()
    exif[0x010E] = "somebody's garden"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(
        file, "JPEG", exif=exif, icc_profile=profile, comment="mine"
    )
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    copy = {"reference_image_url": uri, "exact_copy_mode": True, "denoise_strength": 0}
    (asset,) = ended(ourvidz_eager, payload(prompt="", metadata=copy))["assets"]
    for url in (asset["url"], asset["thumbnail_url"]):
        stored = Image.open(io.BytesIO(ourvidz_eager.control.store.get(url)))
        assert set(stored.info) <= {"XML:com.adobe.xmp", "xmp", "background", "loop", "timestamp", "duration"}
        assert dict(stored.getexif()) == {}


def test_weights_go_from_the_payload_to_the_callback(ourvidz_eager: Eager) -> None:
    """What became of the prompt is told in three fields."""
    told = ended(ourvidz_eager, payload(compel_enabled=True, compel_weights="(sharp focus:1.2)"))
    metadata = told["metadata"]
    assert metadata["compel_success"] is True
    assert metadata["enhancement_strategy"] == "compel"
    assert metadata["final_prompt_type"] == "conditioning_tensor"


def test_followers_see_the_picture_before_it_is_there(ourvidz_eager: Eager) -> None:
    """The first preview is in the stream before the job is done."""
    ourvidz_eager.submit(payload())
    kinds = [item.kind for item in ourvidz_eager.control.ledger.stream("one")]
    assert "preview" in kinds
    assert kinds.index("preview") < kinds.index("done")


def test_an_operator_can_switch_previews_off(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """A metered Redis pays for every byte."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_PREVIEWS="false") as running:
        running.submit(payload())
        assert "preview" not in [item.kind for item in running.control.ledger.stream("one")]


@contextmanager
def putting(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> Iterator[None]:
    """Calls `before` with every key before it is put; a put that fails is tried again at once."""
    put = LocalStore.put

    def told(store: LocalStore, key: str, data: bytes, *, content_type: str) -> None:
        before(key)
        put(store, key, data, content_type=content_type)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "put", told)
        patched.setattr(run, "PUT_PAUSE_S", 0)
        yield


BATCH = {"steps": 1, "width": 64, "height": 64, "num_images": 6, "seed": 40}


def test_one_of_six_that_cannot_be_stored_fails_the_job_and_a_retry_delivers_all(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six or none: the five that are stored are not in the callback, and are the same when it works."""
    tried: list[str] = []

    def full(key: str) -> None:
        if key.endswith("/3.png"):
            tried.append(key)
            raise StorageError("the disk is full")

    with putting(monkeypatch, full):
        failed = ended(ourvidz_eager, payload(config=BATCH))
    assert (failed["error"]["code"], failed["error"]["retryable"]) == ("STORAGE_ERROR", True)
    assert (failed["assets"], len(tried)) == ([], 3)
    dispatch.retry("one")
    told = ourvidz_eager.callbacks.of("one")[-1].payload
    assert ourvidz_eager.callbacks.statuses("one") == ["processing", "failed", "processing", "completed"]
    described = [asset["metadata"] for asset in told["assets"]]
    assert [(one["asset_index"], one["seed"]) for one in described] == [(k, 40 + k) for k in range(6)]
    assert all(ourvidz_eager.control.store.exists(asset["url"]) for asset in told["assets"])


def test_a_job_that_is_cancelled_between_its_pictures_ends_as_cancelled(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that store hear of it: what comes after is neither stored nor delivered."""
    stored: list[str] = []

    def cancel_at_the_first(key: str) -> None:
        if not stored:
            dispatch.cancel("one")
        stored.append(key)

    with putting(monkeypatch, cancel_at_the_first):
        told = ended(ourvidz_eager, payload(config=BATCH))
    assert ourvidz_eager.callbacks.statuses("one") == ["processing", "failed"]
    assert (told["error"]["code"], told["assets"]) == ("CANCELLED", [])
    assert ourvidz_eager.record("one").status == "cancelled"
    # Puts that began before it was said come to their end.
    assert len(stored) <= AT_ONCE


@pytest.fixture
def with_hills(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Eager]:
    """An installation whose jobs may name the LoRA file `hills`, with the weight 2 if they give none."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with safe_open(find_sdxl(None).path / "unet/diffusion_pytorch_model.safetensors", "pt") as kept:
        rows, columns = kept.get_slice(f"{layer.removeprefix('unet.')}.weight").get_shape()
    added = {f"{layer}.lora_A.weight": torch.ones(1, columns), f"{layer}.lora_B.weight": torch.ones(rows, 1)}
    save_file(added, tmp_path / "hills.safetensors")
    # Models that were built for another test know nothing of the file.
    monkeypatch.setattr(loading, "_loaded", {})
    file = f"hills={tmp_path / 'hills.safetensors'}@2"
    with eager(tmp_path / "state", ourvidz_callbacks, OURVIDZ_SDXL_JOB_LORAS=(file,)) as running:
        yield running


def test_a_job_names_the_lora_it_wants(with_hills: Eager) -> None:
    """It is on for that job alone, and the callback tells."""

    def made(job_id: str, **config: Any) -> tuple[Any, bytes]:
        asked = {"steps": 2, "width": 64, "height": 64, "seed": 5, **config}
        told = ended(with_hills, payload(id=job_id, config=asked))
        return told["metadata"].get("loras"), with_hills.control.store.get(told["assets"][0]["url"])

    plain, named, after = made("plain"), made("named", loras=["hills"]), made("after")
    assert (plain[0], named[0], after[0]) == (None, [{"name": "hills", "weight": 2.0}], None)
    assert named[1] != plain[1]
    assert after[1] == plain[1]


def test_a_lora_that_nobody_allowed_is_refused_with_the_names_there_are(with_hills: Eager) -> None:
    """Nothing is queued; the caller reads what may be asked for."""
    with pytest.raises(InvalidParameters) as refused:
        with_hills.submit(payload(config={"loras": ["rivers"]}))
    error = refused.value
    assert (error.field, error.rule, error.value) == ("config.loras[0]", "one of hills", "rivers")
    assert error.http_status == 422
