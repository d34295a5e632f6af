"""Denoising that continues in another process: its state is saved from time to time and restored.

The state after a step is the latents, the scheduler, the generators and the number of the step. Everything
else is computed again: prompt embeddings, timesteps, the latents of references. A state is restored only by a
job, weights, libraries, device and options that equal those it was saved by; then the result has the same
bytes as that of an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ourvidz import log
from ourvidz.pipelines import checkpoint_file
from ourvidz.pipelines.base import DenoisingCheckpoints
from ourvidz.pipelines.checkpoint_file import UnusableCheckpoint
from ourvidz.pipelines.conditions import Conditions
from ourvidz.pipelines.scheduler_state import SchedulerState, Tensors, pack_tensor, unpack_tensor

FORMAT = "1"

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The content of a checkpoint file."""

    document: dict[str, Any]
    tensors: Tensors


class Resumption:
    """Saves and restores the denoising of one job.

    `conditions` must be equal for a state to be restored. `obstacle` says why this job cannot be resumed, if
    so. Without `checkpoints` nothing is saved or restored, nor reported.
    """

    def __init__(
        self,
        checkpoints: DenoisingCheckpoints | None,
        conditions: Conditions,
        *,
        obstacle: str | None = None,
    ) -> None:
        self._checkpoints = None if obstacle else checkpoints
        self._obstacle = obstacle if checkpoints is not None else None
        self._conditions = conditions
        self._job_id = conditions.job.id
        self._device = conditions.device
        self._resumed_from: int | None = None
        self._resumed_batch: int | None = None
        self._refusal: str | None = None
        self._stored = self._find()

    @cached_property
    def _key(self) -> dict[str, str]:
        # On first use: it hashes the reference, which most jobs do not need.
        return {"format": FORMAT, **self._conditions.key()}

    @property
    def position(self) -> Mapping[str, Any] | None:
        """The position of the checkpoint that will be restored, as it was saved; None without one."""
        return None if self._stored is None else self._stored.document["position"]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that was saved with the position."""
        assert self._stored is not None
        return self._stored.tensors[name].to(self._device, copy=True)

    def metadata(self) -> dict[str, Any]:
        """What the job's callback reports: `resumed_from_step`, `resume_refused`, `checkpoints_off`."""
        reported = {
            "resumed_from_step": self._resumed_from,
            "resume_refused": self._refusal,
            "checkpoints_off": self._obstacle,
        }
        return {name: value for name, value in reported.items() if value is not None}

    def batch(
        self,
        scheduler: Any,
        generators: Sequence[torch.Generator],
        position: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> ResumableBatch:
        """Begin one batch; `scheduler` is at its start. The first batch restores the checkpoint that was
        found, if there is one, into scheduler and generators.

        `position` is JSON and `tensors` belong to it: they are saved with every checkpoint of this batch. In
        jobs of several batches its `batches` is the number of this one.
        """
        batch = ResumableBatch(self, scheduler, generators, position, tensors or {})
        stored, self._stored = self._stored, None
        if self._resumed_from is not None and position.get("batches") == self._resumed_batch:
            # Memory ran out after the restoration: the batch starts over with the next fallback.
            self._resumed_from = None
        if stored is not None:
            try:
                batch.restore(stored.document, stored.tensors, self._device)
                self._resumed_from = int(stored.document["steps_done"])
                self._resumed_batch = position.get("batches")
                _log.info("denoising_resumed", job_id=self._job_id, step=self._resumed_from)
            except (KeyError, TypeError, ValueError, RuntimeError):
                _log.exception("checkpoint_not_restored", job_id=self._job_id)
                self._refuse("the checkpoint could not be restored")
        return batch

    def save(self, capture: Callable[[], tuple[dict[str, Any], Tensors]]) -> None:
        """Save a checkpoint if one is due: `capture` copies the state now, another thread writes it."""
        checkpoints = self._checkpoints
        if checkpoints is None or not checkpoints.is_due():
            return
        try:
            document, tensors = capture()
        except TypeError as error:
            # A scheduler of the library with a state that cannot be copied.
            self._checkpoints, self._obstacle = None, str(error)
            _log.warning("checkpoints_off", job_id=self._job_id, reason=str(error))
            return
        checkpoints.save(lambda: checkpoint_file.encode({"key": self._key, **document}, tensors))

    def _find(self) -> _Stored | None:
        """The newest checkpoint that can be restored; without one, the reason of the newest is noted."""
        for data in () if self._checkpoints is None else self._checkpoints.stored():
            try:
                stored = _Stored(*checkpoint_file.decode(data))
                self._check(stored.document)
                self._refusal = None
                return stored
            except UnusableCheckpoint as error:
                self._refuse(str(error))
        return None

    def _check(self, document: Mapping[str, Any]) -> None:
        """Raise `UnusableCheckpoint` unless it was saved under the same conditions."""
        saved = document.get("key", {})
        different = [name for name in {**self._key, **saved} if saved.get(name) != self._key.get(name)]
        if different:
            raise UnusableCheckpoint(f"different from the checkpoint: {', '.join(sorted(different))}")
        if not {"position", "step", "steps_done", "latents", "generators", "scheduler"} <= document.keys():
            raise UnusableCheckpoint("the checkpoint is incomplete")

    def _refuse(self, reason: str) -> None:
        _log.warning("checkpoint_refused", job_id=self._job_id, reason=reason)
        # The newest one comes first, and it is the one that matters.
        self._refusal = self._refusal or reason


class ResumableBatch:
    """The denoising of one batch. `step` is the number of steps that are finished at its start, and `latents`
    are those after them; 0 and None for a batch that starts from the beginning."""

    def __init__(
        self,
        resumption: Resumption,
        scheduler: Any,
        generators: Sequence[torch.Generator],
        position: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        self.step = 0
        self.latents: torch.Tensor | None = None
        self._resumption = resumption
        self._scheduler = SchedulerState(scheduler)
        self._generators = generators
        self._position = position
        self._tensors = tensors

    def restore(self, document: Mapping[str, Any], tensors: Tensors, device: torch.device) -> None:
        """Continue from a saved state. Raises an error, and changes nothing, if it has another structure."""
        latents = unpack_tensor(document["latents"], tensors, device)
        states = [tensors[packed["tensor"]] for packed in document["generators"]]
        pairs = list(zip(self._generators, states, strict=True))
        self._scheduler.restore(document["scheduler"], tensors, device)
        for generator, state in pairs:
            generator.set_state(state)
        self.latents, self.step = latents, int(document["step"])

    def save_if_due(self, step: int, latents: torch.Tensor, *, steps_done: int) -> None:
        """Save a checkpoint after a step, if one is due. `steps_done` counts the steps of all batches."""

        def capture() -> tuple[dict[str, Any], Tensors]:
            scheduler, tensors = self._scheduler.capture()
            document = {
                "position": self._position,
                "step": step,
                "steps_done": steps_done,
                "scheduler": scheduler,
                "latents": pack_tensor(latents, "latents", tensors),
                "generators": [
                    pack_tensor(generator.get_state(), f"generator.{index}", tensors)
                    for index, generator in enumerate(self._generators)
                ],
            }
            for name, tensor in self._tensors.items():
                pack_tensor(tensor, name, tensors)
            return document, tensors

        self._resumption.save(capture)
