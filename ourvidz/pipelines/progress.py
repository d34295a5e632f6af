"""Telling whoever waits for a job how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL.Image import Image

from ourvidz.pipelines.base import OnImage, OnPreview, OnStep, PreviewRenderer


class ProgressReporter:
    """Counts the steps of one job over all its parts and keeps what its listener raised.

    A job that was stopped must end with what stopped it, and never look like a failure of the model.
    """

    def __init__(
        self, on_step: OnStep, on_preview: OnPreview | None = None, on_image: OnImage | None = None
    ) -> None:
        self._on_step = on_step
        self._on_preview = on_preview
        self._on_picture = on_image
        self._before = 0
        self._total = 0
        self.stopped_by: Exception | None = None

    def begin(self, steps: int, *, part: int = 0, parts: int = 1) -> None:
        """Part `part` of `parts` begins, `steps` steps long."""
        self._before, self._total = part * steps, parts * steps
        self._tell(0)

    def step(self, done: int, take: Callable[[], PreviewRenderer] | None = None) -> None:
        """`done` steps of this part are over; `take` copies how it looks now, where that can be told."""
        if take is not None and self._on_preview is not None and self._before + done < self._total:
            self._on_preview(take)
        self._tell(done)

    def picture(self, index: int, image: Image) -> None:
        """Picture `index` of the job is finished."""
        if self._on_picture is not None:
            with self._listening():
                self._on_picture(index, image)

    def _tell(self, done: int) -> None:
        with self._listening():
            self._on_step(self._before + done, self._total)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except Exception as stop:
            self.stopped_by = stop
            raise
