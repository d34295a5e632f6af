"""Storing what a job made."""

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
from ourvidz.media.thumbnails import thumbnail
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.storage.keys import asset_key, thumbnail_key
from ourvidz.storage.store import Store
from ourvidz.workflows.services import Run
from ourvidz.workflows.signing import Credentials, File, told

_log = log.get(__name__)

AT_ONCE = 4
"""Pictures encoded and stored at a time: encoding takes one processor, storage far away mostly waiting."""

StoringJob = ImageJob | VideoJob
"""A job that puts files into storage."""


class AssetUploader:
    """Stores the pictures of one job while others are still being made.

    Some threads each take one picture: they encode, sign and put it, and its thumbnail after it. `Run.put`
    checks the fence and tries again there as it does anywhere. Leaving the context waits for what is being
    put and drops the rest: nothing is stored once the attempt is over.
    """

    def __init__(self, job: StoringJob, run: Run, store: Store, credentials: Credentials) -> None:
        self._job = job
        self._run = run
        self._store = store
        self._credentials = credentials
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"keep-{job.id}")
        self._kept: dict[int, Future[Asset]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, index: int, image: Image) -> None:
        """Store picture `index` from now on. Raises what an earlier one has failed of: the others need not
        be made then."""
        for kept in self._kept.values():
            if kept.done():
                kept.result()
        self._kept[index] = self._pool.submit(self._keep, index, image)

    def assets(self, pictures: GeneratedImages) -> tuple[Asset, ...]:
        """The assets in the order of their seeds, when all pictures are stored, also those that `take` was
        not given before."""
        for index, image in enumerate(pictures.images):
            if index not in self._kept:
                self.take(index, image)
        kept = [self._kept[index].result() for index in range(len(pictures.images))]
        return tuple(
            asset.model_copy(update={"metadata": pictures.asset_metadata | {"seed": seed} | asset.metadata})
            for asset, seed in zip(kept, pictures.seeds, strict=True)
        )

    def _keep(self, index: int, image: Image) -> Asset:
        source, sign = self._credentials.source, self._credentials.on
        file = sign(encode_png(image, source=source), "image/png")
        return keep_file(
            file,
            "png",
            {"width": image.width, "height": image.height},
            self._job,
            self._run,
            self._store,
            index=index,
            small=lambda: sign(thumbnail(image, source=source), "image/webp"),
        )


def keep_pictures(
    pictures: GeneratedImages, job: StoringJob, run: Run, store: Store, credentials: Credentials
) -> tuple[Asset, ...]:
    """Store pictures that are all made, and their thumbnails; the assets in the order of their seeds."""
    with AssetUploader(job, run, store, credentials) as keeper:
        return keeper.assets(pictures)


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
