"""Signed and unsigned assets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import InternalError
from ourvidz.jobs.outcome import Asset
from ourvidz.media.credentials import Signer
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.workflows.assets import upload_images, upload_video
from ourvidz.workflows.signing import AssetSigner
from tests.factories import RecordingRun, image_job, video_job

MIMES = {"png": "image/png", "webp": "image/webp", "mp4": "video/mp4"}
GRADIENT = Image.linear_gradient("L").convert("RGB").resize((64, 48))


@dataclass
class FailingSigner:
    """A signer that fails for files of one MIME type and records all types."""

    failing_type: str
    types: list[str] = field(default_factory=list)

    def sign(self, data: bytes, mime: str, source: DigitalSourceType) -> bytes:
        self.types.append(mime)
        if mime == self.failing_type:
            raise InternalError("The file could not be signed: the certificate has run out")
        return data


@pytest.fixture(scope="module")
def signer(make_chain: Callable[..., Any]) -> Signer:
    chain = make_chain()
    return Signer(chain.certificate, chain.key)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "assets")


def upload(
    store: Store, signer: Any, count: int = 1, source: DigitalSourceType = "trainedAlgorithmicMedia"
) -> tuple[Asset, ...]:
    """Store `count` images of an image job."""
    result = GeneratedImages(images=[GRADIENT] * count, seeds=list(range(count)), seconds=1.0)
    asset_signer = AssetSigner(signer, source, job_id="job-1")
    return upload_images(result, image_job(), RecordingRun(), store, asset_signer)


def upload_a_video(store: Store, signer: Any, type_: str = "video_fast") -> Asset:
    """Store a clip of a video job."""
    frames = 1 if type_.startswith("image") else 5
    job = video_job(type=type_, frames=frames, fps=12)
    result = GeneratedVideo(frames=[GRADIENT] * frames, fps=12, seed=1, frames_generated=frames, seconds=1.0)
    asset_signer = AssetSigner(signer, "trainedAlgorithmicMedia", job_id=job.id)
    (asset,) = upload_video(result, job, RecordingRun(), store, asset_signer)
    return asset


def source_in_manifest(store: Store, key: str | None) -> str:
    """The source type in a stored file's manifest, whose signature must be valid."""
    from c2pa import Reader

    assert key is not None
    with Reader(MIMES[key.rpartition(".")[2]], io.BytesIO(store.get(key))) as reader:
        found = json.loads(reader.json())
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    assertions = {each["label"]: each["data"] for each in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    return str(action["digitalSourceType"]).rpartition("/")[2]


@pytest.mark.parametrize("source", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_images_and_thumbnails_are_stored_signed(
    store: LocalStore, signer: Signer, source: DigitalSourceType
) -> None:
    """The manifest of every file names its source type, and the metadata says that it is there."""
    for asset in upload(store, signer, count=3, source=source):
        assert source_in_manifest(store, asset.key) == source
        assert source_in_manifest(store, asset.thumbnail_key) == source
        assert asset.metadata["c2pa"] is True
        assert "c2pa_error" not in asset.metadata
        assert asset.metadata["file_size_bytes"] == len(store.get(asset.key or ""))


@pytest.mark.parametrize("type_", ["video_fast", "image_fast"])
def test_clips_are_stored_signed(store: LocalStore, signer: Signer, type_: str) -> None:
    """And so are single images of Wan jobs."""
    asset = upload_a_video(store, signer, type_)
    assert source_in_manifest(store, asset.key) == "trainedAlgorithmicMedia"
    assert source_in_manifest(store, asset.thumbnail_key) == "trainedAlgorithmicMedia"
    assert asset.metadata["c2pa"] is True


def test_without_a_certificate_files_are_stored_as_they_are(store: LocalStore) -> None:
    """And the metadata does not mention manifests."""
    (asset,) = upload(store, None)
    assert store.get(asset.key or "") == encode_png(GRADIENT)
    assert not {"c2pa", "c2pa_error"} & set(asset.metadata)


def test_an_image_that_cannot_be_signed_is_stored_unsigned(store: LocalStore, make_chain: Any) -> None:
    """A caller who needs a manifest sees in the metadata that there is none."""
    mixed = Signer(make_chain().certificate, make_chain().key)
    (asset,) = upload(store, mixed)
    assert store.get(asset.key or "") == encode_png(GRADIENT)
    assert asset.thumbnail_key is not None
    assert (asset.metadata["c2pa"], asset.metadata["c2pa_error"]) == (False, "INTERNAL_ERROR")


@pytest.mark.parametrize("mime", ["video/mp4", "image/webp"])
def test_a_clip_counts_as_signed_only_with_both_of_its_files(store: LocalStore, mime: str) -> None:
    """`c2pa` is about the asset and its thumbnail."""
    asset = upload_a_video(store, FailingSigner(mime))
    assert asset.metadata["c2pa"] is False
    assert asset.thumbnail_key is not None


def test_after_a_failure_the_jobs_other_files_are_not_tried() -> None:
    """A time stamp authority that does not answer costs half a minute each time, while the GPU waits."""
    failing = FailingSigner("image/png")
    asset_signer = AssetSigner(failing, "trainedAlgorithmicMedia", job_id="job-1")
    files = [asset_signer.sign(b"image", mime) for mime in ("image/webp", "image/png", "image/webp")]
    assert [file.signed for file in files] == [True, False, False]
    assert failing.types == ["image/webp", "image/png"]


def test_the_reason_is_logged_only(store: LocalStore) -> None:
    """It may name files and hosts of the installation."""
    (asset,) = upload(store, FailingSigner("image/png"))
    assert asset.metadata["c2pa"] is False
    assert "run out" not in json.dumps(asset.metadata)
