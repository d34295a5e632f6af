"""The models of one worker as parts on a device that it shares with the workers of other families."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from ourvidz.errors import InternalError, ModelLoadError, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.job import BaseJob, ChatJob, ImageJob, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines import devices
from ourvidz.settings import Settings
from ourvidz.vram.device import Device
from ourvidz.vram.footprints import Footprints, kind_of
from ourvidz.vram.residency import Residency, ResidencyOptions
from ourvidz.wiring.model_parts import Pipelines, Staged, movable_parts

FORCE_LIMIT_S = 300.0
"""How long an operator's request waits for others to leave: meanwhile this worker runs no job."""
CACHING_FAMILIES = 2
"""Families whose workers keep encoded prompts and references in the memory of the host: SDXL and Wan."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The job that runs: its kind, and what is called while it waits, and at the end of a wait."""

    kind: str | None = None
    waiting: Callable[[], None] = lambda: None
    granted: Callable[[], None] = lambda: None


NO_JOB = _Job()


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
            model: movable_parts(
                model, pipeline, device, worker_id=worker_id, pinned=model in settings.gpu_pinned
            )
            for model, pipeline in pipelines.items()
        }
        """By the names of the models, and within a model by theirs."""
        self._staged = {model: each.pipeline for model, each in pipelines.items() if isinstance(each, Staged)}
        for model, staged in self._staged.items():
            staged.share_memory(_ModelMemory(self, model))
        self._job = NO_JOB
        self._stage: str | None = None
        self._footprints = Footprints(settings.state_dir / "footprints.json")
        self._residency = Residency(
            ledger,
            device,
            [part for parts in self._parts.values() for part in parts.values()],
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
    def hold(
        self,
        model: str,
        job: BaseJob,
        waiting: Callable[[], None],
        granted: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Keep a model, and the memory that a job needs beside it, on the device inside this context; of a
        model in parts, the part that a stage uses while it does.

        `waiting` is called again and again while others have the memory; what it raises ends the wait.
        `granted` is called after such a wait. Raises `OutOfMemory` for more than the device can give.
        """
        if model not in self._parts:  # it runs on another server
            yield
            return
        kind = _kind(self._family, job)
        current = _Job(kind, waiting, granted)
        if model not in self._staged:
            with self._in_use(model, model, kind, current):
                yield
            return
        self._check_stages(model, kind)
        with self._residency.job():
            self._job = current
            try:
                yield
            finally:
                self._job = NO_JOB

    @contextmanager
    def stage(self, model: str, part: str, *, finished: Collection[str]) -> Iterator[None]:
        """Keep a part of a model, and the memory that a stage of the job needs beside it, on the device
        inside this context. `finished`: the parts that the job needs no more."""
        if self._stage == part:  # a step of a stage that has it already
            yield
            return
        if self._stage is not None:
            raise InternalError(f"A stage needs {part} while another one holds {self._stage}.")
        job, self._stage = self._job, part
        kind = None if job.kind is None else f"{job.kind}/{part}"
        try:
            with self._in_use(model, part, kind, job, finished=finished):
                yield
        finally:
            self._stage = None

    @contextmanager
    def _in_use(
        self, model: str, name: str, kind: str | None, job: _Job, *, finished: Collection[str] = ()
    ) -> Iterator[None]:
        """Keep a part with memory to work in on the device, and learn from what was used of it."""
        parts = self._parts[model]
        part_mib = parts[name].part.mib if name in parts else 0
        at_most = self._residency.limit_mib - part_mib
        work_mib = 0 if kind is None else self._work_mib(model, kind, job, at_most)
        has_waited = False

        def wait() -> None:
            nonlocal has_waited
            has_waited = True
            job.waiting()

        with self._residency.hold(
            [parts[name].id] if name in parts else [],
            work_mib=work_mib,
            waiting=wait,
            finished=[parts[other].id for other in finished if other in parts],
            later=[part.id for other, part in parts.items() if other != name and other not in finished],
        ):
            if has_waited:
                job.granted()
            moves = self._residency.moves
            self._device.reset_peak()
            yield
            peak_mib = self._device.peak_mib()
            # Another part that has left meanwhile would be taken for memory that the job did not need.
            if peak_mib is not None and self._residency.moves == moves:
                # A job that has succeeded fits, though it first tried to take more.
                for each in {kind, job.kind}:
                    if each is not None:
                        self._footprints.learn(each, peak_mib, at_most=at_most)

    def _work_mib(self, model: str, kind: str, job: _Job, at_most: int) -> int:
        """The memory that a stage needs beside its part: as it was learned, else as that of whole jobs was,
        else a share of the model's weights. No job is refused for a guess."""
        learned = self._footprints.learned_mib(kind)
        if learned is not None:
            return learned
        weights_mib = sum(part.part.mib for part in self._parts[model].values())
        return max(1, min(self._footprints.work_mib(job.kind or kind, weights_mib), at_most))

    def _check_stages(self, model: str, kind: str) -> None:
        """Raise `OutOfMemory` if the device can never hold what a stage of a job needs."""
        limit_mib = self._residency.limit_mib
        for name, part in self._parts[model].items():
            needed_mib = part.part.mib + (self._footprints.learned_mib(f"{kind}/{name}") or 0)
            if needed_mib > limit_mib:
                raise OutOfMemory(
                    f"This job needs {needed_mib} MiB of device memory, the budget is {limit_mib} MiB."
                )

    def must_yield(self) -> bool:
        """Whether others wait for the device, and the turn of this worker is over."""
        return self._residency.must_yield()

    def bring(self, model: str, *, force: bool) -> bool:
        """Bring a model onto the device if enough memory is free; by force others must leave, even pinned
        ones, within `FORCE_LIMIT_S`. Returns whether it is there."""
        if model not in self._parts:
            return False
        if not force:
            return self._bring_if_free(model)
        ends_at = time.monotonic() + FORCE_LIMIT_S

        def wait() -> None:
            if time.monotonic() > ends_at:
                raise WorkerUnavailable("The memory of the device was not free in time.")

        try:
            with self._residency.hold(self._that_fit_together(model), waiting=wait, force=True):
                return True
        except WorkerUnavailable:
            return False

    def free(self, model: str) -> bool:
        """Free the memory of a model, on the device and on the host. Returns whether it held any."""
        with self._residency.job():
            held = [self._residency.free(part.id) for part in self._parts.get(model, {}).values()]
            if model in self._staged:
                self._staged[model].unload()
        return any(held)

    def warm(self) -> None:
        """Bring those models and parts onto the device for which enough memory is free now; the others come
        with their first job. Raises `ModelLoadError`."""
        for model in self._parts:
            self._bring_if_free(model)

    def _bring_if_free(self, model: str) -> bool:
        """Bring a model, or those of its parts that fit, without any other leaving for it. Returns whether
        all of it is there."""
        parts = [part.id for part in self._parts[model].values()]
        if self._residency.bring_if_free(parts):
            return True
        brought = [self._residency.bring_if_free([part]) for part in parts] if len(parts) > 1 else [False]
        return all(brought)

    def _that_fit_together(self, model: str) -> list[str]:
        """The parts of a model, as many of the first as the device can hold; the first at least."""
        fitting: list[str] = []
        total_mib = 0
        for part in self._parts[model].values():
            total_mib += part.part.mib
            if fitting and total_mib > self._residency.limit_mib:
                break
            fitting.append(part.id)
        return fitting

    def unload(self) -> None:
        """Free all models of this worker."""
        with self._residency.job():
            self._residency.unload()
            for pipeline in self._staged.values():
                pipeline.unload()

    def close(self) -> None:
        """Free everything, and end the thread that answers those who wait."""
        self._residency.stop()

    def memory(self) -> dict[str, int]:
        """Used and total memory of the device, by all processes (bytes)."""
        total = self._device.total_mib()
        return {"used": (total - self._device.free_mib()) << 20, "total": total << 20}


class _ModelMemory:
    """The device for the stages of one model; implements `StageMemory`."""

    def __init__(self, share: SharedDevice, model: str) -> None:
        self._share = share
        self._model = model

    def in_use(self, part: str, *, finished: Collection[str] = ()) -> AbstractContextManager[None]:
        """Have a part of the model on the device inside this context."""
        return self._share.stage(self._model, part, finished=finished)


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
