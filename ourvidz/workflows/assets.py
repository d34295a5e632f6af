"""Storing what a job made."""

from __future__ import annotations

from typing import Any

from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, StorageError, ThumbnailGenerationError
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Asset
from ourvidz.media.images import png
from ourvidz.media.thumbnails import thumbnail
from ourvidz.pipelines.base import Pictures
from ourvidz.storage.keys import asset_key, thumbnail_key
from ourvidz.storage.store import Store
from ourvidz.workflows.services import Run

_log = log.get(__name__)


def keep_pictures(pictures: Pictures, job: ImageJob, run: Run, store: Store) -> tuple[Asset, ...]:
    """Store every picture and its thumbnail; the assets in the order of their seeds."""
    return tuple(
        _keep_picture(index, image, pictures.asset_metadata | {"seed": seed}, job, run, store)
        for index, (image, seed) in enumerate(zip(pictures.images, pictures.seeds, strict=True))
    )


def _keep_picture(
    index: int, image: Image, known: dict[str, Any], job: ImageJob, run: Run, store: Store
) -> Asset:
    """Store one picture. Its thumbnail may be missing afterwards; then the metadata says why."""
    file = png(image)
    key = asset_key(job.bucket, _owner(job), job.id, index, "png")
    run.put(store, key, file, "image/png")
    metadata = known | {
        "width": image.width,
        "height": image.height,
        "format": "png",
        "file_size_bytes": len(file),
        "asset_index": index,
    }
    small_key = thumbnail_key(job.bucket, _owner(job), job.id, index)
    try:
        run.put(store, small_key, thumbnail(image), "image/webp")
    except (ThumbnailGenerationError, StorageError) as error:
        _log.warning("thumbnail_failed", job_id=job.id, asset_index=index, error=error.message)
        failed = {"thumbnail_error": ThumbnailGenerationError.code}
        return Asset(type="image", key=key, metadata=metadata | failed)
    return Asset(type="image", key=key, thumbnail_key=small_key, metadata=metadata)


def _owner(job: ImageJob) -> str:
    if job.user_id is None:
        raise InvalidParameters("A job that stores pictures needs a user.", field="user_id")
    return job.user_id
