"""The loaded components of a Wan pipeline: one checkpoint and, optionally, a VACE transformer beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL.Image import Image

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import sleeping
from ourvidz.pipelines.loading import weights_mib
from ourvidz.pipelines.wan import extra_inputs, loading
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.placement import COMPONENTS, ComponentName, Placement
from ourvidz.pipelines.wan.reference_guidance import ReferencePlan


class Components:
    """Holds the diffusers pipeline of a checkpoint (`pipe`), and in `vace` a VACE pipeline that shares
    everything with it but the transformer, or None. Nothing is loaded at first."""

    def __init__(self, placement: Placement, device: torch.device, options: WanOptions) -> None:
        self.vace: Any = None
        self.asleep = False
        """Whether the weights are in the memory of the host, where no job can run."""
        self._pipe: Any = None
        self.placement = placement
        self._device = device
        self._options = options

    @property
    def loaded(self) -> bool:
        """Whether a checkpoint is loaded."""
        return self._pipe is not None

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline of the checkpoint. Raises `ModelLoadError` if it is not loaded."""
        if self._pipe is None:
            raise ModelLoadError("The Wan checkpoint is not loaded.")
        return self._pipe

    def set_pipe(self, pipe: Any) -> None:
        """Set the main pipeline: optimize its transformer and move its components to their devices."""
        self._options.optimize(pipe.transformer)
        self.placement.place(pipe, self._device)
        self._pipe = pipe

    def set_vace(self, pipe: Any) -> None:
        """Set the VACE pipeline: optimize its transformer, move it to its device, and share equal weights.

        It has all components but the transformer in common with the main pipeline. Weights that are equal in
        both transformers are in memory once.
        """
        self._options.optimize(pipe.transformer)
        self.placement.place(pipe, self._device, ("transformer",))
        if not self._options.grouped:  # group offloading moves each weight separately
            loading.share_equal_weights(pipe.transformer, self.pipe.transformer)
        self.vace = pipe

    def clear(self) -> None:
        """Drop all components. Idempotent."""
        self._pipe, self.vace, self.asleep = None, None, False

    def sleep(self) -> None:
        """Move all weights to the memory of the host. Idempotent. Weights that diffusers moves itself, group
        by group, are there already."""
        if self.loaded:
            self.asleep = True
            sleeping.move_to_host(self._resident())

    def wake(self) -> None:
        """Move the weights back to where they belong while idle. Idempotent."""
        if self.asleep:
            names = tuple(name for name in COMPONENTS if not self.placement.is_grouped(name))
            for pipe in self._pipes():
                self.placement.place(pipe, self._device, names)
            self.asleep = False

    def memory_mib(self) -> int:
        """Size of all weights (MiB)."""
        return weights_mib(self._all())

    def resident_mib(self) -> int:
        """Size of the weights that stay on the device between jobs (MiB): all but those that diffusers moves
        itself."""
        return weights_mib(self._resident())

    def _pipes(self) -> list[Any]:
        return [pipe for pipe in (self._pipe, self.vace) if pipe is not None]

    def _all(self) -> list[object]:
        return [component for pipe in self._pipes() for component in pipe.components.values()]

    def _resident(self) -> list[object]:
        grouped = {name for name in COMPONENTS if self.placement.is_grouped(name)}
        return [
            component
            for pipe in self._pipes()
            for name, component in pipe.components.items()
            if name not in grouped
        ]

    def transformer(self, plan: ReferencePlan) -> Any:
        """The transformer that runs this plan."""
        return self._pipe_for(plan).transformer

    def in_use(
        self, component: ComponentName, plan: ReferencePlan | None = None
    ) -> AbstractContextManager[torch.device]:
        """Move one component to the device where it runs inside this context; of two transformers, the one
        that runs the plan. Yields the device."""
        return self.placement.in_use(self._pipe_for(plan), component, self._device)

    def encode_images(self, images: Sequence[Image]) -> torch.Tensor | None:
        """CLIP embeddings of images, (images, tokens, width); None if this checkpoint has no image
        encoder."""
        if self.pipe.image_encoder is None:
            return None
        with self.in_use("image_encoder"):
            return extra_inputs.encode_images(images, self.pipe.image_encoder)

    def _pipe_for(self, plan: ReferencePlan | None) -> Any:
        """The VACE pipeline for plans that use it, if it is loaded, otherwise the main pipeline."""
        use_vace = plan is not None and plan.model == "vace" and self.vace is not None
        return self.vace if use_vace else self.pipe
