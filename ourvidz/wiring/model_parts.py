"""What is moved of the models of a worker: whole models, or the parts of a model one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ourvidz.pipelines.stage_memory import StageMemory
from ourvidz.records.devices import PART_MARK, Part, part_id
from ourvidz.vram.device import Device

FIRST_LOAD_S = 30.0
"""How long a model is taken to load before it was loaded once."""


class WholePipeline(Protocol):
    """What moving a model as a whole needs of its pipeline."""

    load_s: float | None

    def load(self) -> None:
        """Bring the weights onto the device."""

    def sleep(self) -> None:
        """Move them to the host's memory."""

    def unload(self) -> None:
        """Free them."""

    def info(self) -> dict[str, Any]:
        """`memory_mib`: the size of the weights that are loaded, on the device or the host."""


class StagedPipeline(Protocol):
    """What moving the parts of a model one by one needs of its pipeline. Its stages say which part they
    use."""

    load_s: float | None

    def share_memory(self, memory: StageMemory) -> None:
        """Use only parts that `memory` has brought from now on."""

    def load_part(self, part: Any) -> None:
        """Bring a part onto the device."""

    def sleep_part(self, part: Any) -> None:
        """Move it to the host's memory."""

    def unload_part(self, part: Any) -> None:
        """Free it."""

    def part_mib(self, part: Any) -> float | None:
        """Size of its weights, wherever they are; None before they were read once."""

    def unload(self) -> None:
        """Forget the checkpoint: the next part reads it again."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that is moved as a whole, and the size of its files (MiB)."""

    pipeline: WholePipeline
    files_mib: float


@dataclass(frozen=True, slots=True)
class Staged:
    """A model whose parts are moved one by one, in the order of the stages that use them, each with the size
    of its files (MiB)."""

    pipeline: StagedPipeline
    files_mib: Mapping[Any, float]


Pipelines = Mapping[str, Whole | Staged]
"""The pipelines of a worker by the names of their models."""


class MovablePart:
    """A model or a part of it under the id `id`; implements `Movable`. `files_mib` counts until `weights_mib`
    returns a size."""

    def __init__(
        self,
        id: str,
        device: Device,
        *,
        load: Callable[[], None],
        sleep: Callable[[], None],
        unload: Callable[[], None],
        weights_mib: Callable[[], float | None],
        files_mib: float,
        cost_s: Callable[[], float],
        pinned: bool,
    ) -> None:
        self.id = id
        self.load, self.sleep, self.unload = load, sleep, unload
        self._device = device
        self._weights_mib = weights_mib
        self._known_mib = files_mib
        self._cost_s = cost_s
        self._pinned = pinned

    @property
    def part(self) -> Part:
        """Its id, the memory of its weights on this device, and how long it takes to bring them."""
        self._known_mib = self._weights_mib() or self._known_mib
        return Part(
            id=self.id,
            mib=self._device.size_mib(self._known_mib),
            cost_s=self._cost_s(),
            pinned=self._pinned,
        )


def movable_parts(
    model: str, pipeline: Whole | Staged, device: Device, *, worker_id: str, pinned: bool
) -> dict[str, MovablePart]:
    """The parts of a model by their names; of a whole model one with the name of the model."""
    if isinstance(pipeline, Whole):
        return {model: _whole(part_id(model, worker_id), pipeline, device, pinned=pinned)}
    total_mib = sum(pipeline.files_mib.values())
    return {
        name: _part(f"{model}{PART_MARK}{name}", name, pipeline, device, worker_id, total_mib, pinned=pinned)
        for name in pipeline.files_mib
    }


def _whole(id: str, model: Whole, device: Device, *, pinned: bool) -> MovablePart:
    pipeline = model.pipeline
    return MovablePart(
        id,
        device,
        load=pipeline.load,
        sleep=pipeline.sleep,
        unload=pipeline.unload,
        weights_mib=lambda: float(pipeline.info()["memory_mib"]),
        files_mib=model.files_mib,
        cost_s=lambda: pipeline.load_s or FIRST_LOAD_S,
        pinned=pinned,
    )


def _part(
    name: str, part: str, model: Staged, device: Device, worker_id: str, total_mib: float, *, pinned: bool
) -> MovablePart:
    pipeline, files_mib = model.pipeline, model.files_mib[part]
    return MovablePart(
        part_id(name, worker_id),
        device,
        load=lambda: pipeline.load_part(part),
        sleep=lambda: pipeline.sleep_part(part),
        unload=lambda: pipeline.unload_part(part),
        weights_mib=lambda: pipeline.part_mib(part),
        files_mib=files_mib,
        # Of the time that loading the model takes, as large a share as of its files.
        cost_s=lambda: (pipeline.load_s or FIRST_LOAD_S) * files_mib / total_mib,
        pinned=pinned,
    )
