"""SDXL jobs from payload to callback, on the checkpoint that ships, in one process."""

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
from ourvidz.workflows import staging

pytestmark = pytest.mark.model


def payload(**changes: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "type": "sdxl_image_fast",
        "prompt": "a hill above a lake",
        "user_id": "me",
        "config": {"steps": 3, "width": 64, "height": 64},
    } | changes


def reference_uri() -> str:
    """A reference as a data URI."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def run_job(system: Eager, requested: dict[str, Any]) -> dict[str, Any]:
    """Run a job; return the payload of its last callback."""
    system.submit(requested)
    return system.callbacks.of(requested["id"])[-1].payload


def test_a_reference_is_used_and_reported(ourvidz_eager: Eager) -> None:
    """The payload has the form of the live edge function; the callback has the fields of the contract."""
    reference = {"reference_image_url": reference_uri(), "denoise_strength": 0.7}
    callback = run_job(ourvidz_eager, payload(metadata=reference, negative_prompt="fog"))
    assert callback["status"] == "completed"
    metadata, asset_metadata = callback["metadata"], callback["assets"][0]["metadata"]
    assert (metadata["reference_mode"], metadata["i2i_mode"]) == ("single", "modify")
    assert metadata["reference_backend"] == "img2img"
    assert "reference_fallback" not in metadata
    assert (
        asset_metadata["steps"],
        asset_metadata["effective_steps"],
        asset_metadata["denoise_strength"],
    ) == (3, 2, 0.7)
    assert (asset_metadata["pipeline"], asset_metadata["resize_policy"]) == ("img2img", "center_crop")
    assert asset_metadata["negative_prompt_used"] is True


def test_an_exact_copy_has_fixed_parameters(ourvidz_eager: Eager) -> None:
    """Steps and strength are set at submission, and the callback reports the values that were used."""
    copy = {"reference_image_url": reference_uri(), "exact_copy_mode": True, "denoise_strength": 0.9}
    callback = run_job(ourvidz_eager, payload(prompt="", metadata=copy))
    asset_metadata = callback["assets"][0]["metadata"]
    assert (callback["metadata"]["i2i_mode"], callback["metadata"]["exact_copy_mode"]) == ("copy", True)
    assert (asset_metadata["effective_steps"], asset_metadata["guidance_scale"]) == (10, 1.0)
    assert asset_metadata["denoise_strength"] == 0.05


def test_a_copy_carries_nothing_of_the_reference_but_its_pixels(ourvidz_eager: Eager) -> None:
    """The place, author and colour profile of a photo are not passed on."""
    exif = Image.Exif()
    exif[0x010E] = "somebody's garden"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(
        file, "JPEG", exif=exif, icc_profile=profile, comment="mine"
    )
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    copy = {"reference_image_url": uri, "exact_copy_mode": True, "denoise_strength": 0}
    (asset,) = run_job(ourvidz_eager, payload(prompt="", metadata=copy))["assets"]
    for url in (asset["url"], asset["thumbnail_url"]):
        stored = Image.open(io.BytesIO(ourvidz_eager.control.store.get(url)))
        assert set(stored.info) <= {"XML:com.adobe.xmp", "xmp", "background", "loop", "timestamp", "duration"}
        assert dict(stored.getexif()) == {}


def test_prompt_weights_are_applied_and_reported(ourvidz_eager: Eager) -> None:
    """The callback has three fields about them."""
    callback = run_job(ourvidz_eager, payload(compel_enabled=True, compel_weights="(sharp focus:1.2)"))
    metadata = callback["metadata"]
    assert metadata["compel_success"] is True
    assert metadata["enhancement_strategy"] == "compel"
    assert metadata["final_prompt_type"] == "conditioning_tensor"


def test_a_repeated_prompt_is_not_encoded_again_and_gives_equal_files(ourvidz_eager: Eager) -> None:
    """Callers try variants of one prompt: only the first pays for its encoding."""
    callbacks = [
        run_job(ourvidz_eager, payload(id=job_id, prompt="a hill that no other test has", config=config))
        for job_id in ("one", "two")
        for config in [{"steps": 2, "width": 64, "height": 64, "seed": 5}]
    ]
    counts = [callback["metadata"]["embedding_cache"] for callback in callbacks]
    assert counts == [{"hits": 0, "misses": 1}, {"hits": 1, "misses": 0}]
    keys = [callback["assets"][0]["url"] for callback in callbacks]
    one, two = (ourvidz_eager.control.store.get(key) for key in keys)
    assert one == two
    counters = ourvidz_eager.control.ledger.counters()
    assert (counters["embedding_cache.hits"], counters["embedding_cache.misses"]) == (1, 1)


def test_followers_get_a_preview_before_the_job_is_done(ourvidz_eager: Eager) -> None:
    """The first preview is in the stream before the `done` item."""
    ourvidz_eager.submit(payload())
    kinds = [item.kind for item in ourvidz_eager.control.ledger.stream("one")]
    assert "preview" in kinds
    assert kinds.index("preview") < kinds.index("done")


def test_an_operator_can_switch_previews_off(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """Hosted Redis may charge for the transferred bytes of previews."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_PREVIEWS="false") as running:
        running.submit(payload())
        assert "preview" not in [item.kind for item in running.control.ledger.stream("one")]


@contextmanager
def watched_puts(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> Iterator[None]:
    """Call `before` with every key before it is put; a put that fails is retried without a pause."""
    put = LocalStore.put

    def watched(store: LocalStore, key: str, data: bytes, *, content_type: str) -> None:
        before(key)
        put(store, key, data, content_type=content_type)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "put", watched)
        patched.setattr(staging, "PUT_BACKOFF_S", 0)
        yield


BATCH = {"steps": 1, "width": 64, "height": 64, "num_images": 6, "seed": 40}


def test_an_image_that_cannot_be_stored_fails_its_batch_and_a_retry_delivers_all(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed callback does not list the five images that were stored."""
    tried: list[str] = []

    def fail(key: str) -> None:
        if key.endswith("/3.png"):
            tried.append(key)
            raise StorageError("the disk is full")

    with watched_puts(monkeypatch, fail):
        failed = run_job(ourvidz_eager, payload(config=BATCH))
    assert (failed["error"]["code"], failed["error"]["retryable"]) == ("STORAGE_ERROR", True)
    assert (failed["assets"], len(tried)) == ([], 3)
    dispatch.retry("one")
    callback = ourvidz_eager.callbacks.of("one")[-1].payload
    assert ourvidz_eager.callbacks.statuses("one") == ["processing", "failed", "processing", "completed"]
    metadata = [asset["metadata"] for asset in callback["assets"]]
    assert [(each["asset_index"], each["seed"]) for each in metadata] == [(k, 40 + k) for k in range(6)]
    assert all(ourvidz_eager.control.store.exists(asset["url"]) for asset in callback["assets"])


def test_a_job_that_is_cancelled_between_its_images_ends_as_cancelled(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are neither published nor delivered, and what was stored is removed."""
    stored: list[str] = []

    def cancel_at_the_first(key: str) -> None:
        if not stored:
            dispatch.cancel("one")
        stored.append(key)

    with watched_puts(monkeypatch, cancel_at_the_first):
        callback = run_job(ourvidz_eager, payload(config=BATCH))
    assert ourvidz_eager.callbacks.statuses("one") == ["processing", "failed"]
    assert (callback["error"]["code"], callback["assets"]) == ("CANCELLED", [])
    assert ourvidz_eager.record("one").status == "cancelled"
    assert [path for path in ourvidz_eager.storage.rglob("*") if path.is_file()] == []


@pytest.fixture
def with_lora(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> Iterator[Eager]:
    """An installation whose jobs may name the LoRA file `hills`; its default weight is 2."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with safe_open(find_sdxl(None).path / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        rows, columns = file.get_slice(f"{layer.removeprefix('unet.')}.weight").get_shape()
    weights = {
        f"{layer}.lora_A.weight": torch.ones(1, columns),
        f"{layer}.lora_B.weight": torch.ones(rows, 1),
    }
    save_file(weights, tmp_path / "hills.safetensors")
    entry = f"hills={tmp_path / 'hills.safetensors'}@2"
    with eager(tmp_path / "state", ourvidz_callbacks, OURVIDZ_SDXL_JOB_LORAS=(entry,)) as running:
        yield running


def test_a_lora_is_applied_to_the_job_that_names_it(with_lora: Eager) -> None:
    """Other jobs run without it; the callback names it."""

    def generate(job_id: str, **config: Any) -> tuple[Any, bytes]:
        config = {"steps": 2, "width": 64, "height": 64, "seed": 5, **config}
        callback = run_job(with_lora, payload(id=job_id, config=config))
        return callback["metadata"].get("loras"), with_lora.control.store.get(callback["assets"][0]["url"])

    plain, named, after = (
        generate("plain"),
        generate("named", loras=["hills"]),
        generate("after"),
    )
    assert (plain[0], named[0], after[0]) == (None, [{"name": "hills", "weight": 2.0}], None)
    assert named[1] != plain[1]
    assert after[1] == plain[1]


def test_a_lora_that_is_not_configured_is_refused(with_lora: Eager) -> None:
    """The error lists the configured names."""
    with pytest.raises(InvalidParameters) as refused:
        with_lora.submit(payload(config={"loras": ["rivers"]}))
    error = refused.value
    assert (error.field, error.rule, error.value) == ("config.loras[0]", "one of hills", "rivers")
    assert error.http_status == 422
