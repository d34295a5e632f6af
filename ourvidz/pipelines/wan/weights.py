"""The weights of a Wan checkpoint: read from disk, and moved between device and host whole or in parts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch

from ourvidz import log
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import devices, identity
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.identity import NO_WEIGHTS, Weights
from ourvidz.pipelines.loading import loading, reading
from ourvidz.pipelines.stage_clock import StageClock, measured
from ourvidz.pipelines.stage_memory import StageMemory, Unmeasured
from ourvidz.pipelines.tensor_cache import TensorCache
from ourvidz.pipelines.wan.checkpoint import WanModel, read_model_info
from ourvidz.pipelines.wan.components import Components, PartName
from ourvidz.pipelines.wan.loading import read_again, read_pipeline, read_vace_pipeline
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.part_sizes import part_sizes
from ourvidz.pipelines.wan.placement import ComponentName, Placement

_log = log.get(__name__)

ON_DEVICE = Placement()
DEFAULT_OPTIONS = WanOptions()


class WanWeights(ABC):
    """One Wan checkpoint and where its weights are; `WanPipeline` runs jobs with them. `cap` is the longest
    edge (px) that it renders; None is no cap.

    The checkpoint may be any of Wan's models; `model` says which, once it is loaded. `vace` is a second
    checkpoint that runs the jobs with references. `cache` keeps encoded prompts and references.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        vace: Checkpoint | None = None,
        cap: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        placement: Placement = ON_DEVICE,
        options: WanOptions = DEFAULT_OPTIONS,
        cache: TensorCache | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.vace = vace
        self.model: WanModel = "t2v"
        self.cap = cap
        self.device = device or devices.best_device()
        self.options = options
        self.dtype = dtype or options.dtype_on(self.device)
        self.cache = cache or TensorCache()
        self.clock = StageClock()
        self.load_s: float | None = None
        self.components = Components(replace(placement, grouped=options.grouped), self.device, options)
        self._has_shared_memory = False
        self._weights = NO_WEIGHTS
        self._forget()

    @measured("load")
    def load(self) -> None:
        """Load the weights onto the device, or move them back from the host's memory. Idempotent.

        Raises `ModelLoadError`; then nothing stays loaded, because a worker without its VACE checkpoint would
        generate different clips.
        """
        if self._has_shared_memory:
            if not self.components.loaded:  # the stages bring what they use
                with self.components.memory.in_use("text_encoder"):
                    """Bringing the first part reads the checkpoint."""
            self._prepare()
            return
        try:
            self._read()
            with reading(self.checkpoint):
                for part in self.components.parts:
                    self.components.load_part(part)
                self._prepare()
        except ModelLoadError:
            self.unload()
            raise

    def sleep(self) -> None:
        """Move the weights to the memory of the host, from where `load` brings them back. Idempotent."""
        for part in self.components.parts:
            self.components.sleep_part(part)

    def unload(self) -> None:
        """Free the weights. Idempotent."""
        self.components.clear()
        self._forget()
        devices.free_memory()

    def share_memory(self, memory: StageMemory) -> None:
        """From now on, have a part of the weights on the device only while a stage uses it, as `memory`
        grants it: that calls `load_part`, `sleep_part` and `unload_part`."""
        self.components.memory = Unmeasured(memory, self.clock)
        self._has_shared_memory = True

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts of the weights that are moved as wholes."""
        return self.components.parts

    def part_sizes(self) -> dict[PartName, float]:
        """Size of each part (MiB) as the headers of the files say, before they are read."""
        sizes = part_sizes(self.checkpoint, self.vace, self.dtype)
        return {part: sizes[part] for part in self.parts}

    def part_mib(self, part: PartName) -> float | None:
        """Size of a part's weights (MiB), wherever they are; None before they were read once."""
        return self.components.part_mib(part)

    @measured("load")
    def load_part(self, part: PartName) -> None:
        """Bring one part onto the device, from the memory of the host or from disk; the first one reads the
        whole checkpoint. Idempotent. Raises `ModelLoadError`, or torch's error for a full device."""
        self._read()
        if not self.components.holds(part):
            if self._identify().states != self._weights.states:
                change = f"{self.checkpoint.path} has changed since it was loaded"
                raise ModelLoadError(f"{change}: `ourvidz memory unload wan` lets it be read anew.")
            with reading(self.checkpoint):
                self.components.take_over(part, self._read_again)
        self.components.load_part(part)

    def sleep_part(self, part: PartName) -> None:
        """Move one part to the memory of the host. Idempotent."""
        self.components.sleep_part(part)

    def unload_part(self, part: PartName) -> None:
        """Free one part, wherever it is. Idempotent."""
        self.components.drop_part(part)

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """The checkpoint, where it is loaded, and its options."""

    @abstractmethod
    def _prepare(self) -> None:
        """Measure what is needed before the first job, unless that was done since the last `_forget`."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop what `_prepare` has measured."""

    def _read(self) -> None:
        """Read the checkpoint to the CPU, unless it was read. Raises `ModelLoadError`; then nothing is."""
        if self.components.loaded:
            return
        self.options.check(self.device)
        started = time.perf_counter()
        vace = None
        with loading(self.checkpoint):
            self.model = read_model_info(self.checkpoint.path).model
            self._weights = self._identify()
            pipe = self._read_pipeline()
        if self.vace is not None:
            with loading(self.vace):
                vace = read_vace_pipeline(self.vace, pipe, self.dtype)
        self.components.set_pipes(pipe, vace)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("wan_loaded", **self.info())

    def _identify(self) -> Weights:
        """The identity of the files as they are now."""
        return identity.loaded_weights(self.checkpoint, {} if self.vace is None else {"vace": self.vace})

    def _read_again(self, pipe: Any, name: ComponentName) -> Any:
        """A component of one of the pipelines, from its files."""
        checkpoint = self.vace if self.vace is not None and pipe is self.components.vace else self.checkpoint
        return read_again(checkpoint, name, getattr(pipe, name), self.dtype)

    def _read_pipeline(self) -> Any:
        return read_pipeline(self.checkpoint, self.model, self.dtype)
