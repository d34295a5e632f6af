"""Assets with and without a manifest."""

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
from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.jobs.outcome import Asset
from ourvidz.media.credentials import Signer
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.workflows.assets import keep_pictures
from ourvidz.workflows.clips import keep_clip
from ourvidz.workflows.signing import Credentials

MIMES = {"png": "image/png", "webp": "image/webp", "mp4": "video/mp4"}
HILLS = Image.linear_gradient("L").convert("RGB").resize((64, 48))


class PlainRun:
    """A run that stores at once."""

    def step(self, done: int, total: int) -> None:
        """Nobody listens."""

    def preview(self, *_: Any) -> None:
        """Nobody looks."""

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        store.put(key, data, content_type=content_type)


@dataclass
class Broken:
    """A signer that fails with files of one type, and writes down what it was given."""

    fails_with: str
    given: list[str] = field(default_factory=list)

    def sign(self, data: bytes, mime: str, source: DigitalSourceType) -> bytes:
        self.given.append(mime)
        if mime == self.fails_with:
            raise InternalError("The file could not be signed: the certificate has run out")
        return data


@pytest.fixture(scope="module")
def signer(make_chain: Callable[..., Any]) -> Signer:
    chain = make_chain()
    return Signer(chain.certificate, chain.key)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "assets")


def kept(
    store: Store, signer: Any, count: int = 1, source: DigitalSourceType = "trainedAlgorithmicMedia"
) -> tuple[Asset, ...]:
    """Store this many pictures of an image job."""
    job = ImageJob(
        id="job-1", type="sdxl_image_fast", user_id="user-1", expected_time=9, prompt="hills", steps=2,
        guidance_scale=7.5, width=64, height=48, seed=1,
    )  # fmt: skip
    pictures = GeneratedImages(images=[HILLS] * count, seeds=list(range(count)), seconds=1.0)
    return keep_pictures(pictures, job, PlainRun(), store, Credentials(signer, source, job_id=job.id))


def kept_clip(store: Store, signer: Any, type_: str = "video_fast") -> Asset:
    """Store a clip of a video job."""
    frames = 1 if type_.startswith("image") else 5
    job = VideoJob(
        id="job-1", type=type_, user_id="user-1", expected_time=9, prompt="hills", steps=2,
        guidance_scale=6.5, width=64, height=48, frames=frames, fps=12, seed=1,
    )  # fmt: skip
    clip = GeneratedVideo(frames=[HILLS] * frames, fps=12, seed=1, frames_generated=frames, seconds=1.0)
    credentials = Credentials(signer, "trainedAlgorithmicMedia", job_id=job.id)
    (asset,) = keep_clip(clip, job, PlainRun(), store, credentials)
    return asset


def source_in_manifest(store: Store, key: str | None) -> str:
    """The source type in a stored file's manifest, whose signature must be whole."""
    from c2pa import Reader

    assert key is not None
    with Reader(MIMES[key.rpartition(".")[2]], io.BytesIO(store.get(key))) as reader:
        found = json.loads(reader.json())
    assert found["validation_state"] == "Valid"
    said = {one["label"]: one["data"] for one in found["manifests"][found["active_manifest"]]["assertions"]}
    (action,) = said["c2pa.actions.v2"]["actions"]
    return str(action["digitalSourceType"]).rpartition("/")[2]


@pytest.mark.parametrize("source", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_pictures_and_thumbnails_are_stored_signed(
    store: LocalStore, signer: Signer, source: DigitalSourceType
) -> None:
    """The manifest of every file says where it comes from, and the asset says that it is there."""
    for asset in kept(store, signer, count=3, source=source):
        assert source_in_manifest(store, asset.key) == source
        assert source_in_manifest(store, asset.thumbnail_key) == source
        assert asset.metadata["c2pa"] is True
        assert "c2pa_error" not in asset.metadata
        assert asset.metadata["file_size_bytes"] == len(store.get(asset.key or ""))


@pytest.mark.parametrize("type_", ["video_fast", "image_fast"])
def test_clips_are_stored_signed(store: LocalStore, signer: Signer, type_: str) -> None:
    """So is the single picture that Wan makes."""
    asset = kept_clip(store, signer, type_)
    assert source_in_manifest(store, asset.key) == "trainedAlgorithmicMedia"
    assert source_in_manifest(store, asset.thumbnail_key) == "trainedAlgorithmicMedia"
    assert asset.metadata["c2pa"] is True


def test_without_a_certificate_files_are_as_they_were_made(store: LocalStore) -> None:
    """Nobody hears of manifests where none are wanted."""
    (asset,) = kept(store, None)
    assert store.get(asset.key or "") == encode_png(HILLS)
    assert not {"c2pa", "c2pa_error"} & set(asset.metadata)


def test_a_picture_that_cannot_be_signed_is_stored_and_says_so(store: LocalStore, make_chain: Any) -> None:
    """It is paid for; and a caller who needs a manifest sees that there is none."""
    mixed = Signer(make_chain().certificate, make_chain().key)
    (asset,) = kept(store, mixed)
    assert store.get(asset.key or "") == encode_png(HILLS)
    assert asset.thumbnail_key is not None
    assert (asset.metadata["c2pa"], asset.metadata["c2pa_error"]) == (False, "INTERNAL_ERROR")


@pytest.mark.parametrize("mime", ["video/mp4", "image/webp"])
def test_a_clip_is_signed_when_both_its_files_are(store: LocalStore, mime: str) -> None:
    """One word about an asset must hold for its thumbnail too."""
    asset = kept_clip(store, Broken(mime))
    assert asset.metadata["c2pa"] is False
    assert asset.thumbnail_key is not None


def test_after_a_failure_the_jobs_other_files_are_not_tried() -> None:
    """An authority that does not answer takes half a minute each time, while the GPU waits."""
    broken = Broken("image/png")
    credentials = Credentials(broken, "trainedAlgorithmicMedia", job_id="job-1")
    files = [credentials.on(b"picture", mime) for mime in ("image/webp", "image/png", "image/webp")]
    assert [file.signed for file in files] == [True, False, False]
    assert broken.given == ["image/webp", "image/png"]


def test_the_reason_stays_in_our_log(store: LocalStore) -> None:
    """It may name files and hosts of ours, which callers have no use for."""
    (asset,) = kept(store, Broken("image/png"))
    assert asset.metadata["c2pa"] is False
    assert "run out" not in json.dumps(asset.metadata)
