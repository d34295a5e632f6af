"""Reports a job's progress to the callables that `generate` was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL.Image import Image

from ourvidz.pipelines.base import OnImage, OnPreview, OnStep, Snapshot


class ProgressReporter:
    """Counts denoising steps over all batches of one job and calls `on_step`, `on_preview` and `on_image`.

    `callback_error` is the exception that `on_step` or `on_image` raised, if any. Such an exception stops the
    job; the pipeline must raise it unchanged instead of treating it as a failure of the model. `steps_done`
    is the number of finished steps of all batches.
    """

    def __init__(
        self, on_step: OnStep, on_preview: OnPreview | None = None, on_image: OnImage | None = None
    ) -> None:
        self._on_step = on_step
        self._on_preview = on_preview
        self._on_image = on_image
        self._offset = 0
        self._total = 0
        self.steps_done = 0
        self.callback_error: Exception | None = None

    def begin(self, steps: int, *, batch: int = 0, batches: int = 1, done: int = 0) -> None:
        """Start batch number `batch`, counted from 0, of `batches` batches of `steps` steps each; `done`
        steps of it are finished already."""
        self._offset, self._total = batch * steps, batches * steps
        self._report_step(done)

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        """Report that `done` steps of the current batch are finished. `snapshot` copies the current latents;
        None if previews are not available."""
        if snapshot is not None and self._on_preview is not None and self._offset + done < self._total:
            self._on_preview(snapshot)
        self._report_step(done)

    def image(self, index: int, image: Image) -> None:
        """Report that image number `index` of the job is finished."""
        if self._on_image is not None:
            with self._recording_errors():
                self._on_image(index, image)

    def _report_step(self, done: int) -> None:
        self.steps_done = self._offset + done
        with self._recording_errors():
            self._on_step(self.steps_done, self._total)

    @contextmanager
    def _recording_errors(self) -> Iterator[None]:
        """Record an error of a callback, which is not to be taken for one of the pipeline."""
        try:
            yield
        except Exception as error:
            self.callback_error = error
            raise
