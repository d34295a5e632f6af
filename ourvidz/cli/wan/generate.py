"""Making what `wan_generate.py` was asked for: the workflow of the queue, with local files. Loads torch."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from PIL.Image import Image

from ourvidz.cli.wan.request import Request
from ourvidz.errors import ModelLoadError, OutOfMemory, ReferenceFrameError, StorageError
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import GeneratedVideo, PreviewRenderer, SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.placement import Placement
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.settings import Settings
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring import signing
from ourvidz.wiring.models import TINY_WAN_CAP_PX, WarmModels, wan_options
from ourvidz.workflows.services import Services
from ourvidz.workflows.video import generate_video


@dataclass(frozen=True, slots=True)
class OpenedPictures:
    """References that lie in memory already; implements `References`."""

    by_name: dict[str, Image]

    def resolve(self, reference: str, *, user_id: str | None) -> Image:  # noqa: ARG002
        """The picture of that name."""
        if reference not in self.by_name:
            raise ReferenceFrameError(f"There is no {reference} reference.")
        return self.by_name[reference]


class Sourced(WanPipeline):
    """A pipeline that makes its clips from one source, if there is one: no job of the queue brings any."""

    def __init__(self, checkpoint: Checkpoint, source: SourceVideo | None, **given: Any) -> None:
        super().__init__(checkpoint, **given)
        self._source = source

    def generate(self, job: VideoJob, *, source: SourceVideo | None = None, **given: Any) -> GeneratedVideo:
        """Make the clip of one job, from the source."""
        return super().generate(job, source=source or self._source, **given)


class Terminal:
    """A run that nobody queued: a progress bar, and files that are kept at once. Implements `Run`."""

    wording: dict[str, Any] | None = None

    def __init__(self) -> None:
        self._until_the_end = ExitStack()
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until_the_end.close()

    def step(self, done: int, total: int) -> None:
        """Move the bar; it appears with the first call."""
        if self._bar is None:
            bar = click.progressbar(length=total, label=f"{total} steps", file=sys.stderr)
            self._bar = self._until_the_end.enter_context(bar)
        self._bar.update(done - self._done)
        self._done = done

    def preview(self, take: Callable[[], PreviewRenderer]) -> None:
        """Nobody is watching."""

    def say(self, text: str, done: int, total: int) -> bool:  # noqa: ARG002
        """No clip speaks."""
        return True

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Keep one file."""
        store.put(key, data, content_type=content_type)


def generate(request: Request, chosen: Settings, placement: Placement) -> Outcome:
    """Generate and save. `ModelLoadError`, `OutOfMemory`, `StorageError` for a file that cannot be
    written, `SettingsError` for a certificate that cannot sign."""
    signer = signing.signer(chosen)
    pipeline = _loaded(request, chosen, placement)
    with tempfile.TemporaryDirectory(prefix="ourvidz-wan-") as aside, Terminal() as run:
        store = LocalStore(Path(aside))
        use = Services(
            models=WarmModels(wan=pipeline),
            store=store,
            gate=Gate(load_terms()),
            references=OpenedPictures(request.references),
            signer=signer,
        )
        outcome = generate_video(request.job, run, use)
        key = outcome.assets[0].key
        assert key is not None
        _write(request.output_file, store.get(key))
    return outcome


def _loaded(request: Request, chosen: Settings, placement: Placement) -> WanPipeline:
    checkpoint = request.checkpoint
    cap = TINY_WAN_CAP_PX if checkpoint.kind == "tiny" else None
    options = replace(wan_options(chosen), previews=False)
    pipeline = Sourced(
        checkpoint, request.source, vace=request.vace, cap=cap, placement=placement, options=options
    )
    try:
        pipeline.load()
    except ModelLoadError as error:
        if error.__cause__ is None or not devices.is_out_of_memory(error.__cause__):
            raise
        raise OutOfMemory(f"Not enough memory to load {checkpoint.path}.") from error
    return pipeline


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}.") from None
