"""Previews of unfinished images, rendered on a thread of their own so that denoising never waits."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from ourvidz import log
from ourvidz.pipelines.base import PreviewRenderer, Snapshot

PREVIEW_INTERVAL_S = 0.5

_log = log.get(__name__)

PreviewItem = tuple[Literal["preview"], dict[str, Any]]
"""A preview as an item of the job's stream: `webp` (base64), `width`, `height` (px)."""


class Previews:
    """The previews of one attempt: at most one is being rendered, and at most two a second begin.

    A snapshot offered before the last preview was collected is dropped. After the first failure there are no
    more previews. Any thread may collect; no method raises or blocks.
    """

    def __init__(self, job_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._clock = clock
        self._next_at = clock()
        self._failed = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"preview-{job_id}")
        self._rendering: Future[PreviewItem] | None = None
        self._lock = threading.Lock()

    def offer(self, snapshot: Snapshot) -> None:
        """Take the snapshot and render it on the thread, if a preview is due and the last one was
        collected."""
        now = self._clock()
        if self._failed or self._rendering is not None or now < self._next_at:
            return
        self._next_at = now + PREVIEW_INTERVAL_S
        try:
            self._rendering = self._pool.submit(_render, snapshot())
        except Exception:  # noqa: BLE001  a failed preview must not fail the job
            self._disable()

    def collect(self) -> list[PreviewItem]:
        """Return the preview that was rendered since the last call: one item, or none."""
        with self._lock:
            if self._rendering is None or not self._rendering.done():
                return []
            finished, self._rendering = self._rendering, None
        try:
            return [finished.result()]
        except Exception:  # noqa: BLE001  a failed preview must not fail the job
            self._disable()
            return []

    def close(self) -> None:
        """Render no more; do not wait for a preview that is being rendered."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _disable(self) -> None:
        """Log the current error and render no more previews of this job."""
        self._failed = True
        _log.exception("previews_off", job_id=self._job_id)


def _render(renderer: PreviewRenderer) -> PreviewItem:
    # Imported here: the parent of a worker imports this module and makes no media.
    from ourvidz.media.thumbnails import thumbnail

    image = renderer()
    webp = base64.b64encode(thumbnail(image)).decode()
    return "preview", {"webp": webp, "width": image.width, "height": image.height}
