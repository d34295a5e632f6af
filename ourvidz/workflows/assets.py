"""Storing of generated images and clips, each with a thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, StorageError, ThumbnailGenerationError
from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.jobs.outcome import Asset
from ourvidz.media.images import encode_png
from ourvidz.media.thumbnails import clip_thumbnail, thumbnail
from ourvidz.media.video import encode_mp4
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo, GenerationResult
from ourvidz.storage.keys import asset_key, thumbnail_key
from ourvidz.storage.store import Store
from ourvidz.workflows.pictures import JobPictures
from ourvidz.workflows.services import Run
from ourvidz.workflows.signing import AssetFile, AssetSigner, signature_metadata

_log = log.get(__name__)

UPLOAD_THREADS = 4
"""Images of one job that are encoded and stored at a time: encoding takes one processor, a remote storage
mostly waiting."""

MediaJob = ImageJob | VideoJob
"""A job that stores files."""


class AssetUploader:
    """Stores the images of one job while others are still being decoded.

    Each image is judged by `pictures`, encoded, signed and stored on a thread of a pool, followed by its
    thumbnail. `Run.put` checks the fence and retries on these threads too. Leaving the context waits for
    running uploads and drops the queued ones: nothing is stored once the attempt is over.
    """

    def __init__(
        self,
        job: MediaJob,
        run: Run,
        store: Store,
        signer: AssetSigner,
        pictures: JobPictures | None = None,
    ) -> None:
        self._job = job
        self._run = run
        self._store = store
        self._signer = signer
        self._pictures = pictures
        self._pool = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix=f"upload-{job.id}")
        self._uploads: dict[int, Future[Asset]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def upload(self, index: int, image: Image) -> None:
        """Begin to store image `index`. Raises the error of an earlier upload that has failed: the remaining
        images need not be generated then."""
        for upload in self._uploads.values():
            if upload.done():
                upload.result()
        self._uploads[index] = self._pool.submit(self._upload, index, image)

    def finish(self, result: GeneratedImages) -> tuple[Asset, ...]:
        """Store the images that were not passed to `upload`, wait for all, and return the assets in the order
        of their seeds. Raises the error of an upload that failed."""
        for index, image in enumerate(result.images):
            if index not in self._uploads:
                self.upload(index, image)
        assets = [self._uploads[index].result() for index in range(len(result.images))]
        shared = _shared_metadata(result)
        return tuple(
            asset.model_copy(update={"metadata": shared | {"seed": seed} | asset.metadata})
            for asset, seed in zip(assets, result.seeds, strict=True)
        )

    def _upload(self, index: int, image: Image) -> Asset:
        """Judge, sign and store one image with its thumbnail."""
        if self._pictures is not None:
            self._pictures.check("result", image)
        source, sign = self._signer.source, self._signer.sign
        return _store_file(
            sign(encode_png(image, source=source), "image/png"),
            "png",
            {"width": image.width, "height": image.height},
            self._job,
            self._run,
            self._store,
            index=index,
            make_thumbnail=lambda: sign(thumbnail(image, source=source), "image/webp"),
        )


def _shared_metadata(result: GenerationResult) -> dict[str, Any]:
    """Return the metadata that all assets of a result have."""
    return result.asset_metadata | {"batch_size": result.batch_size}


def upload_images(
    result: GeneratedImages, job: MediaJob, run: Run, store: Store, signer: AssetSigner
) -> tuple[Asset, ...]:
    """Store images that are all generated, and their thumbnails; return the assets in the order of their
    seeds."""
    with AssetUploader(job, run, store, signer) as uploader:
        return uploader.finish(result)


def upload_video(
    result: GeneratedVideo, job: VideoJob, run: Run, store: Store, signer: AssetSigner
) -> tuple[Asset, ...]:
    """Store a clip and its thumbnail: as PNG for the job types that make one image, else as MP4."""
    if job.row.output == "png":
        images = GeneratedImages(
            images=result.frames,
            seeds=[result.seed],
            seconds=result.seconds,
            asset_metadata=result.asset_metadata,
        )
        return upload_images(images, job, run, store, signer)
    width, height = result.frames[0].size
    metadata = _shared_metadata(result) | {
        "seed": result.seed,
        "width": width,
        "height": height,
        "fps": result.fps,
        "frames": len(result.frames),
        "frames_generated": result.frames_generated,
        "duration_seconds": round(len(result.frames) / result.fps, 3),
    }
    mp4 = signer.sign(encode_mp4(result.frames, fps=result.fps, source=signer.source), "video/mp4")

    def make_thumbnail() -> AssetFile:
        return signer.sign(clip_thumbnail(result.frames, source=signer.source), "image/webp")

    return (_store_file(mp4, "mp4", metadata, job, run, store, make_thumbnail=make_thumbnail),)


def _store_file(
    file: AssetFile,
    extension: Literal["png", "mp4"],
    metadata: dict[str, Any],
    job: MediaJob,
    run: Run,
    store: Store,
    *,
    make_thumbnail: Callable[[], AssetFile],
    index: int = 0,
) -> Asset:
    """Store one file and its WEBP thumbnail; return the asset with `metadata` and what is known of the file.

    A thumbnail that fails is left out, and the metadata says so.
    """
    kind: Literal["image", "video"] = "image" if extension == "png" else "video"
    user_id = _user_id(job)
    key = asset_key(job.bucket, user_id, job.id, index, extension)
    run.put(store, key, file.data, f"{kind}/{extension}")
    metadata = metadata | {"format": extension, "file_size_bytes": len(file.data), "asset_index": index}
    small_key = thumbnail_key(job.bucket, user_id, job.id, index)
    try:
        small = make_thumbnail()
        run.put(store, small_key, small.data, "image/webp")
    except (ThumbnailGenerationError, StorageError) as error:
        _log.warning("thumbnail_failed", job_id=job.id, asset_index=index, error=error.message)
        failure = {"thumbnail_error": ThumbnailGenerationError.code}
        return Asset(type=kind, key=key, metadata=metadata | signature_metadata(file) | failure)
    signatures = signature_metadata(file, small)
    return Asset(type=kind, key=key, thumbnail_key=small_key, metadata=metadata | signatures)


def _user_id(job: MediaJob) -> str:
    if job.user_id is None:
        raise InvalidParameters("A job that stores files needs a user.", field="user_id")
    return job.user_id
