"""The device whose memory is shared: a CUDA GPU, or an emulated one that several processes allocate from."""

from __future__ import annotations

import fcntl
import json
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ourvidz import log
from ourvidz.settings import Settings
from ourvidz.settings.memory import EMULATED_GPU
from ourvidz.vram import owners
from ourvidz.vram.gpu import MIB


class Device(Protocol):
    """The memory of one device, in MiB. `id` is unique over all hosts."""

    id: str

    def total_mib(self) -> int:
        """All memory of the device."""

    def free_mib(self) -> int:
        """Memory that no process holds, measured now."""

    def own_mib(self) -> int:
        """Memory that this process holds, measured now."""

    def size_mib(self, weights_mib: float) -> int:
        """The memory that weights of this size take on this device."""

    def reset_peak(self) -> None:
        """Begin to measure the working memory of a job."""

    def peak_mib(self) -> int | None:
        """The most memory that this process has taken since `reset_peak`, beyond what it held then; None
        where that cannot be measured."""

    def limit(self, mib: int) -> None:
        """Let the libraries of this process allocate at most so much: beyond it they raise the error of a
        full device. What is allocated already stays."""

    def allocate(self, name: str, mib: int) -> None:
        """Take memory under a name, where the libraries do not do so themselves; a second call with a name
        changes its size. Raises `torch.OutOfMemoryError`, and takes nothing, when there is not enough."""

    def release(self, name: str) -> None:
        """Give the memory of a name back. Idempotent."""


class CudaDevice:
    """The first GPU that this process sees. torch allocates; this class only measures."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.id = f"{socket.gethostname()}:{properties.uuid}"
        self._held_before = 0

    def total_mib(self) -> int:
        """All memory of the GPU."""
        return int(torch.cuda.mem_get_info()[1]) // MIB

    def free_mib(self) -> int:
        """Memory that no process holds."""
        return int(torch.cuda.mem_get_info()[0]) // MIB

    def own_mib(self) -> int:
        """Memory that torch holds in this process, cached blocks among it."""
        return int(torch.cuda.memory_reserved()) // MIB

    def size_mib(self, weights_mib: float) -> int:
        """The same size."""
        return round(weights_mib)

    def reset_peak(self) -> None:
        """Begin to measure the working memory of a job."""
        torch.cuda.reset_peak_memory_stats()
        self._held_before = int(torch.cuda.memory_allocated())

    def peak_mib(self) -> int | None:
        """The most memory that torch has allocated since, beyond what it held then."""
        return max(0, int(torch.cuda.max_memory_allocated()) - self._held_before) // MIB

    def limit(self, mib: int) -> None:
        """Limit torch's allocator; what the driver and libraries take beside it does not count."""
        torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, mib / self.total_mib())))

    def allocate(self, name: str, mib: int) -> None:
        """Nothing: torch allocates when modules move."""

    def release(self, name: str) -> None:  # noqa: ARG002
        """Give back the blocks that torch keeps of what was freed: others are granted this memory."""
        torch.cuda.empty_cache()


Table = dict[str, dict[str, int]]
"""Allocations (MiB) by owner and name."""
_held: defaultdict[tuple[Path, str], dict[str, int]] = defaultdict(dict)
"""What this process holds, by the file of the card and owner."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class EmulatedSpec:
    """What `OURVIDZ_EMULATED_GPU` says: `name:48GiB`, or `name:48GiB,scale=0.001`.

    `scale`: one MiB of real weights stands for 1 / scale MiB, so that tiny models fill a large card.
    """

    name: str
    total_mib: int
    scale: float = 1.0

    @classmethod
    def parse(cls, value: str) -> EmulatedSpec:
        """Read a value of the setting. Raises `ValueError`."""
        match = EMULATED_GPU.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} must be NAME:SIZEGiB or NAME:SIZEGiB,scale=FACTOR")
        spec = cls(match["name"], round(float(match["gib"]) * 1024), float(match["scale"] or 1))
        if spec.total_mib <= 0 or not 0 < spec.scale <= 1:
            raise ValueError(f"{value!r} must have a size above 0 and a scale from 0 to 1")
        return spec


class EmulatedDevice:
    """A card of which a file keeps the allocations of all processes.

    It behaves as a GPU does where it matters: an allocation that does not fit raises torch's own error, and
    the memory of a process that has ended is free at once. A file that is damaged or deleted is rebuilt: each
    process adds what it holds when it next looks, at least once a second.
    """

    def __init__(self, spec: EmulatedSpec, folder: Path, *, worker_id: str = "process") -> None:
        self.id = f"{socket.gethostname()}:{spec.name}"
        self._spec = spec
        self._file = folder / f"{spec.name}.json"
        self._owner = owners.owner_id(worker_id)
        folder.mkdir(parents=True, exist_ok=True)

    def total_mib(self) -> int:
        """All memory of the card."""
        return self._spec.total_mib

    def free_mib(self) -> int:
        """Memory that no living process holds."""
        with self._open() as table:
            return max(0, self._free_mib(table))

    def own_mib(self) -> int:
        """Memory that this process holds."""
        with self._open() as table:
            return sum(table[self._owner].values())

    def size_mib(self, weights_mib: float) -> int:
        """The size on the card's scale, at least 1."""
        return max(1, round(weights_mib / self._spec.scale))

    def reset_peak(self) -> None:
        """Nothing: what jobs really allocate is the host's memory."""

    def peak_mib(self) -> int | None:
        """None: it is not measured."""
        return None

    def limit(self, mib: int) -> None:
        """Nothing: only what was reserved is allocated here."""

    def allocate(self, name: str, mib: int) -> None:
        """Take memory under a name. Raises `torch.OutOfMemoryError` when there is not enough."""
        with self._open() as table:
            own = table[self._owner]
            free = self._free_mib(table) + own.get(name, 0)
            if mib > free:
                raise torch.OutOfMemoryError(
                    f"Emulated card {self._spec.name} out of memory: {mib} MiB wanted, {free} MiB free."
                )
            own[name] = mib

    def release(self, name: str) -> None:
        """Give the memory of a name back."""
        with self._open() as table:
            table[self._owner].pop(name, None)

    def _free_mib(self, table: Table) -> int:
        return self._spec.total_mib - sum(sum(own.values()) for own in table.values())

    @contextmanager
    def _open(self) -> Iterator[Table]:
        """The allocations by owner and name, under a lock; written back unless an error is raised."""
        with self._file.open("a+", encoding="utf-8", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            stored = self._parse(text)
            table = {owner: own for owner, own in stored.items() if own and not _has_left(owner)}
            # The file is not trusted with what this process holds: every process adds its own to a new one.
            table[self._owner] = dict(_held[self._file, self._owner])
            yield table
            _held[self._file, self._owner] = dict(table[self._owner])
            changed = json.dumps({owner: own for owner, own in table.items() if own})
            if changed != text:
                file.seek(0)
                file.truncate()
                file.write(changed)

    def _parse(self, text: str) -> Table:
        """The allocations in the file; none, with a line in the log, when it is damaged."""
        try:
            stored = json.loads(text or "{}")
            table = {
                str(owner): {str(name): int(mib) for name, mib in own.items()}
                for owner, own in stored.items()
            }
            if any(mib < 0 for own in table.values() for mib in own.values()):
                raise ValueError("an allocation is below 0")
            return table
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            _log.warning("emulated_gpu_rebuilt", file=str(self._file), reason=str(error))
            return {}


def _has_left(owner: str) -> bool:
    """Whether an owner's memory is free: its process has ended, or cannot be seen. Those that share an
    emulated card see each other."""
    return not owners.is_visible(owner) or owners.has_ended(owner)


def open_device(settings: Settings, worker: str) -> Device | None:
    """The device of this process: an emulated one where the settings name it, else the GPU, else None."""
    if settings.emulated_gpu is not None:
        folder = settings.state_dir / "emulated-gpus"
        return EmulatedDevice(
            EmulatedSpec.parse(settings.emulated_gpu), folder, worker_id=settings.worker_id(worker)
        )
    return CudaDevice() if torch.cuda.is_available() else None
