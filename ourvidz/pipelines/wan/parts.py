"""The parts of a Wan pipeline in memory, and where each waits and works."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL.Image import Image

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.loading import weights_mib
from ourvidz.pipelines.wan import conditions, loading
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.placement import Part, Placement
from ourvidz.pipelines.wan.reference_frames import Plan


class Parts:
    """The parts of one checkpoint and, where there is one, the transformer of VACE beside them.

    Nothing is loaded at first. `vace` is a pipeline that shares everything but its transformer, or None.
    """

    def __init__(self, placement: Placement, device: torch.device, options: WanOptions) -> None:
        self.vace: Any = None
        self._pipe: Any = None
        self._placement = placement
        self._device = device
        self._options = options

    @property
    def loaded(self) -> bool:
        """Whether there are any."""
        return self._pipe is not None

    @property
    def pipe(self) -> Any:
        """The pipeline of the checkpoint. `ModelLoadError` when it is not loaded."""
        if self._pipe is None:
            raise ModelLoadError("The Wan checkpoint is not loaded.")
        return self._pipe

    def hold(self, pipe: Any) -> None:
        """Bring the parts of a pipeline that was just read to where they wait."""
        self._options.quicken(pipe.transformer)
        self._placement.settle(pipe, self._device)
        self._pipe = pipe

    def hold_vace(self, pipe: Any) -> None:
        """The same with the transformer of a VACE pipeline that shares the other parts."""
        self._options.quicken(pipe.transformer)
        self._placement.settle(pipe, self._device, ("transformer",))
        if not self._options.grouped:  # what moves weights in groups knows each by its own place
            loading.share(pipe.transformer, self.pipe.transformer)
        self.vace = pipe

    def drop(self) -> None:
        """Let go of all. Safe to call twice."""
        self._pipe, self.vace = None, None

    def memory_mib(self) -> int:
        """What the weights take (MiB)."""
        pipes = [pipe for pipe in (self._pipe, self.vace) if pipe is not None]
        return weights_mib([part for pipe in pipes for part in pipe.components.values()])

    def transformer(self, plan: Plan) -> Any:
        """The transformer that follows this plan."""
        return self._following(plan).transformer

    def at_work(self, part: Part, plan: Plan | None = None) -> AbstractContextManager[torch.device]:
        """The device that one part is on for a while; of the transformers, the one that follows the plan."""
        return self._placement.at_work(self._following(plan), part, self._device)

    def image_tokens(self, pictures: Sequence[Image]) -> torch.Tensor | None:
        """What the image encoder says of pictures, if this checkpoint has one."""
        if self.pipe.image_encoder is None:
            return None
        with self.at_work("image_encoder"):
            return conditions.looked_at(pictures, self.pipe.image_encoder)

    def _following(self, plan: Plan | None) -> Any:
        beside = plan is not None and plan.model == "vace" and self.vace is not None
        return self.vace if beside else self.pipe
