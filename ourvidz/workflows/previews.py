"""Unfinished pictures for the followers of one attempt, drawn where they hold up nothing."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from ourvidz import log
from ourvidz.media.thumbnails import thumbnail
from ourvidz.pipelines.base import PreviewRenderer

PREVIEW_EVERY_S = 0.5

_log = log.get(__name__)

Item = tuple[Literal["preview"], dict[str, Any]]


class Previews:
    """At most one preview at a time is drawn, on one thread; what is offered before it was fetched is
    dropped. After the first failure there are no more. Any thread may fetch; nothing here raises or waits."""

    def __init__(self, job_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._clock = clock
        self._due_at = clock()
        self._failed = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"preview-{job_id}")
        self._drawing: Future[Item] | None = None
        self._fetching = threading.Lock()

    def offer(self, take: Callable[[], PreviewRenderer]) -> None:
        """Have what `take` copies drawn, if it is time and the last one was fetched."""
        now = self._clock()
        if self._failed or self._drawing is not None or now < self._due_at:
            return
        self._due_at = now + PREVIEW_EVERY_S
        try:
            self._drawing = self._pool.submit(_item, take())
        except Exception:  # noqa: BLE001  whatever a preview fails of, the job goes on
            self._give_up()

    def drawn(self) -> list[Item]:
        """What was drawn since the last call: one item of the job's stream, or none."""
        with self._fetching:
            if self._drawing is None or not self._drawing.done():
                return []
            finished, self._drawing = self._drawing, None
        try:
            return [finished.result()]
        except Exception:  # noqa: BLE001  whatever a preview fails of, the job goes on
            self._give_up()
            return []

    def close(self) -> None:
        """Draw no more. One that is being drawn is forgotten, not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _give_up(self) -> None:
        self._failed = True
        _log.exception("previews_off", job_id=self._job_id)


def _item(look: PreviewRenderer) -> Item:
    small = look()
    webp = base64.b64encode(thumbnail(small)).decode()
    return "preview", {"webp": webp, "width": small.width, "height": small.height}
