"""Storing what a job made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, StorageError, ThumbnailGenerationError
from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.jobs.outcome import Asset
from ourvidz.media.images import png
from ourvidz.media.thumbnails import thumbnail
from ourvidz.pipelines.base import Pictures
from ourvidz.storage.keys import asset_key, thumbnail_key
from ourvidz.storage.store import Store
from ourvidz.workflows.services import Run
from ourvidz.workflows.signing import Credentials, File, told

_log = log.get(__name__)

ENCODERS = 4
"""Pictures encoded at a time; encoding a large one takes one processor for a second."""

StoringJob = ImageJob | VideoJob
"""A job that puts files into storage."""


def keep_pictures(
    pictures: Pictures, job: StoringJob, run: Run, store: Store, credentials: Credentials
) -> tuple[Asset, ...]:
    """Store every picture and its thumbnail; the assets in the order of their seeds.

    The next pictures are encoded and signed while one is being stored: the pipeline waits for all of it.
    """
    pool = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
    try:
        files = [pool.submit(_picture, image, credentials) for image in pictures.images]
        small = [pool.submit(_thumbnail, image, credentials) for image in pictures.images]
        return tuple(
            keep_file(
                files[index].result(),
                "png",
                pictures.asset_metadata | {"seed": seed, "width": image.width, "height": image.height},
                job,
                run,
                store,
                index=index,
                small=small[index].result,
            )
            for index, (image, seed) in enumerate(zip(pictures.images, pictures.seeds, strict=True))
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _picture(image: Image, credentials: Credentials) -> File:
    return credentials.on(png(image, source=credentials.source), "image/png")


def _thumbnail(image: Image, credentials: Credentials) -> File:
    return credentials.on(thumbnail(image, source=credentials.source), "image/webp")


def keep_file(
    file: File,
    ending: Literal["png", "mp4"],
    known: dict[str, Any],
    job: StoringJob,
    run: Run,
    store: Store,
    *,
    small: Callable[[], File],
    index: int = 0,
) -> Asset:
    """Store one file and its thumbnail, the WEBP that `small` makes.

    The thumbnail may be missing afterwards; then the metadata says why.
    """
    kind: Literal["image", "video"] = "image" if ending == "png" else "video"
    key = asset_key(job.bucket, _owner(job), job.id, index, ending)
    run.put(store, key, file.data, f"{kind}/{ending}")
    metadata = known | {"format": ending, "file_size_bytes": len(file.data), "asset_index": index}
    small_key = thumbnail_key(job.bucket, _owner(job), job.id, index)
    try:
        thumb = small()
        run.put(store, small_key, thumb.data, "image/webp")
    except (ThumbnailGenerationError, StorageError) as error:
        _log.warning("thumbnail_failed", job_id=job.id, asset_index=index, error=error.message)
        failed = {"thumbnail_error": ThumbnailGenerationError.code}
        return Asset(type=kind, key=key, metadata=metadata | told(file) | failed)
    return Asset(type=kind, key=key, thumbnail_key=small_key, metadata=metadata | told(file, thumb))


def _owner(job: StoringJob) -> str:
    if job.user_id is None:
        raise InvalidParameters("A job that stores pictures needs a user.", field="user_id")
    return job.user_id
