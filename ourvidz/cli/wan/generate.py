"""Runs a request of `wan_generate.py` with the workflow of the queue and local files. Loads torch."""

from __future__ import annotations

import sys
import tempfile
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
from ourvidz.pipelines.base import DenoisingCheckpoints, GeneratedVideo, Snapshot, SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.placement import Placement
from ourvidz.references.resolve import ResolvedReference
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.settings import Settings
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring import signing
from ourvidz.wiring.models import WarmModels
from ourvidz.wiring.pictures import picture_gate
from ourvidz.wiring.wan import TINY_WAN_CAP_PX, wan_options
from ourvidz.workflows.services import Services
from ourvidz.workflows.video import generate_video


@dataclass(frozen=True, slots=True)
class LoadedReferences:
    """Reference images that are already in memory, by name. Implements `References`."""

    images: dict[str, Image]

    def resolve(self, reference: str, *, user_id: str | None) -> ResolvedReference:  # noqa: ARG002
        """The image of that name. Raises `ReferenceFrameError` for an unknown name."""
        if reference not in self.images:
            raise ReferenceFrameError(f"There is no {reference} reference.")
        return ResolvedReference(self.images[reference])


class SourceVideoPipeline(WanPipeline):
    """A Wan pipeline with a fixed source video: jobs have no field for one."""

    def __init__(self, checkpoint: Checkpoint, source: SourceVideo | None, **arguments: Any) -> None:
        super().__init__(checkpoint, **arguments)
        self._source = source

    def generate(
        self, job: VideoJob, *, source: SourceVideo | None = None, **arguments: Any
    ) -> GeneratedVideo:
        """Generate the clip of a job from `source`, by default the fixed one."""
        return super().generate(job, source=source or self._source, **arguments)


class TerminalRun:
    """A run without a ledger: shows a progress bar and stores files directly. Implements `Run`."""

    enhancement_result: dict[str, Any] | None = None
    checkpoints: DenoisingCheckpoints | None = None

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def step(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done. The bar appears with the first call."""
        if self._bar is None:
            bar = click.progressbar(length=total, label=f"{total} steps", file=sys.stderr)
            self._bar = self._resources.enter_context(bar)
        self._bar.update(done - self._done)
        self._done = done

    def wait_for_device(self) -> None:
        """Never called: the command shares the GPU with nobody."""

    def end_wait(self) -> None:
        """Never called, too."""

    def preview(self, snapshot: Snapshot) -> None:
        """Ignore previews: the command has no viewer."""

    def exclude(self, seconds: float) -> None:
        """Ignore it: the command has no time limit."""

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Store one file."""
        store.put(key, data, content_type=content_type)


def generate(request: Request, settings: Settings, placement: Placement) -> Outcome:
    """Load the pipeline, generate, and write the output file.

    Raises `PolicyViolation` for a picture that the operator's classifier refuses, `ModelLoadError`,
    `OutOfMemory`, `StorageError` if the file cannot be written, and `SettingsError` for an invalid signing
    certificate or classifier.
    """
    signer = signing.signer(settings)
    pipeline = _load_pipeline(request, settings, placement)
    with tempfile.TemporaryDirectory(prefix="ourvidz-wan-") as folder, TerminalRun() as run:
        store = LocalStore(Path(folder))
        services = Services(
            models=WarmModels(wan=pipeline),
            store=store,
            gate=Gate(load_terms()),
            references=LoadedReferences(request.references),
            signer=signer,
            pictures=picture_gate(settings),
        )
        outcome = generate_video(request.job, run, services)
        key = outcome.assets[0].key
        assert key is not None
        _write(request.output_file, store.get(key))
    return outcome


def _load_pipeline(request: Request, settings: Settings, placement: Placement) -> WanPipeline:
    """Load the pipeline of a request. Raises `ModelLoadError`, or `OutOfMemory` if the weights do not fit."""
    checkpoint = request.checkpoint
    cap = TINY_WAN_CAP_PX if checkpoint.kind == "tiny" else None
    options = replace(wan_options(settings), previews=False)
    pipeline = SourceVideoPipeline(
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
    """Write a file. Raises `StorageError`."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}.") from None
