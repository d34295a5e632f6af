"""The models of one worker as parts on a device that it shares with the workers of other families."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ourvidz.errors import ModelLoadError, WorkerUnavailable
from ourvidz.jobs.job import BaseJob, ChatJob, ImageJob, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines import devices
from ourvidz.records.devices import Part, part_id
from ourvidz.settings import Settings
from ourvidz.vram.device import Device
from ourvidz.vram.footprints import Footprints, kind_of
from ourvidz.vram.residency import Residency, ResidencyOptions

FORCE_LIMIT_S = 300.0
"""How long an operator's request waits for others to leave: meanwhile this worker runs no job."""
CACHING_FAMILIES = 2
"""Families whose workers keep encoded prompts and references in the memory of the host: SDXL and Wan."""
FIRST_LOAD_S = 30.0
"""How long a model is taken to load before it was loaded once."""


class MovablePipeline(Protocol):
    """What moving needs of a pipeline."""

    load_s: float | None

    def load(self) -> None:
        """Bring the weights onto the device."""

    def sleep(self) -> None:
        """Move them to the host's memory."""

    def unload(self) -> None:
        """Free them."""

    def info(self) -> dict[str, Any]:
        """`memory_mib`: the size of the weights that are loaded, on the device or the host; `resident_mib`,
        where it differs, of those that stay on the device between jobs."""


Pipelines = Mapping[str, tuple[MovablePipeline, int]]
"""The pipelines of a worker by the names of their models, each with the size of its files (MiB)."""


class ModelPart:
    """A whole model as one part of this name; implements `Movable`. `files_mib` is the size of its files,
    which counts until it was loaded once."""

    def __init__(
        self, name: str, pipeline: MovablePipeline, device: Device, *, files_mib: int, pinned: bool
    ) -> None:
        self._name = name
        self._pipeline = pipeline
        self._device = device
        self._weights_mib = files_mib
        self._pinned = pinned
        self.load, self.sleep, self.unload = pipeline.load, pipeline.sleep, pipeline.unload

    @property
    def part(self) -> Part:
        """The model by its name, with the memory of its weights."""
        info = self._pipeline.info()
        self._weights_mib = int(info.get("resident_mib", info["memory_mib"])) or self._weights_mib
        return Part(
            id=self._name,
            mib=self._device.size_mib(self._weights_mib),
            cost_s=self._pipeline.load_s or FIRST_LOAD_S,
            pinned=self._pinned,
        )


class SharedDevice:
    """Keeps the models of this worker on the device while jobs use them; implements `DeviceShare`."""

    def __init__(
        self,
        settings: Settings,
        family: str,
        ledger: Ledger,
        device: Device,
        pipelines: Pipelines,
    ) -> None:
        self._family = family
        self._device = device
        worker_id = settings.worker_id(family)
        self._parts = {
            model: ModelPart(
                part_id(model, worker_id),
                pipeline,
                device,
                files_mib=files_mib,
                pinned=model in settings.gpu_pinned,
            )
            for model, (pipeline, files_mib) in pipelines.items()
        }
        """By the names of the models."""
        self._footprints = Footprints(settings.state_dir / "footprints.json")
        self._residency = Residency(
            ledger,
            device,
            list(self._parts.values()),
            family=family,
            worker_id=worker_id,
            options=ResidencyOptions(
                budget_mib=settings.gpu_budget_mib,
                host_budget_mib=max(
                    0, settings.host_budget_mib - CACHING_FAMILIES * settings.embedding_cache_mib
                ),
                turn_s=settings.gpu_turn_s,
                lease_s=settings.lease_s,
            ),
            is_out_of_memory=_is_out_of_memory,
        )
        self._residency.start()

    @contextmanager
    def hold(self, model: str, job: BaseJob, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep a model, and the memory that a job needs beside it, on the device inside this context.

        `waiting` is called again and again while others have the memory; what it raises ends the wait. Raises
        `OutOfMemory` for more than the device can give.
        """
        if model not in self._parts:  # it runs on another server
            yield
            return
        kind = _kind(self._family, job)
        part = self._parts[model].part
        weights_mib = part.mib
        at_most = self._residency.limit_mib - weights_mib
        work_mib = self._footprints.work_mib(kind, weights_mib, at_most=at_most)
        with self._residency.hold([part.id], work_mib=work_mib, waiting=waiting):
            self._device.reset_peak()
            yield
            peak_mib = self._device.peak_mib()
            if peak_mib is not None:
                # A job that has succeeded fits, though it first tried to take more.
                self._footprints.learn(kind, peak_mib, at_most=at_most)

    def must_yield(self) -> bool:
        """Whether others wait for the device, and the turn of this worker is over."""
        return self._residency.must_yield()

    def bring(self, model: str, *, force: bool) -> bool:
        """Bring a model onto the device if enough memory is free; by force others must leave, even pinned
        ones, within `FORCE_LIMIT_S`. Returns whether it is there."""
        if model not in self._parts:
            return False
        part = self._parts[model].part.id
        if not force:
            return self._residency.bring_if_free(part)
        ends_at = time.monotonic() + FORCE_LIMIT_S

        def wait() -> None:
            if time.monotonic() > ends_at:
                raise WorkerUnavailable("The memory of the device was not free in time.")

        try:
            with self._residency.hold([part], waiting=wait, force=True):
                return True
        except WorkerUnavailable:
            return False

    def free(self, model: str) -> bool:
        """Free the memory of a model, on the device and on the host. Returns whether it held any."""
        return model in self._parts and self._residency.free(self._parts[model].part.id)

    def warm(self) -> None:
        """Bring those models onto the device for which enough memory is free now; the others come with their
        first job. Raises `ModelLoadError`."""
        for part in self._parts.values():
            self._residency.bring_if_free(part.part.id)

    def unload(self) -> None:
        """Free all models of this worker."""
        self._residency.unload()

    def close(self) -> None:
        """Free everything, and end the thread that answers those who wait."""
        self._residency.stop()

    def memory(self) -> dict[str, int]:
        """Used and total memory of the device, by all processes (bytes)."""
        total = self._device.total_mib()
        return {"used": (total - self._device.free_mib()) << 20, "total": total << 20}


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether the device was full, also while a model was being loaded."""
    cause = error.__cause__ if isinstance(error, ModelLoadError) else None
    return devices.is_out_of_memory(cause or error)


def _kind(family: str, job: BaseJob) -> str:
    if isinstance(job, VideoJob):
        return kind_of(family, pixels=job.width * job.height, count=job.frames)
    if isinstance(job, ImageJob):
        return kind_of(family, pixels=job.width * job.height, count=job.num_images)
    return kind_of(family, pixels=job.max_tokens if isinstance(job, ChatJob) else 1, count=1)
