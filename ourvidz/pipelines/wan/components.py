"""The loaded components of a Wan pipeline: one checkpoint and, optionally, a VACE transformer beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL.Image import Image

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import sleeping
from ourvidz.pipelines.loading import BYTES_PER_MIB, weights_bytes, weights_mib
from ourvidz.pipelines.stage_memory import AlwaysResident, StageMemory
from ourvidz.pipelines.wan import extra_inputs, loading
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.placement import COMPONENTS, ComponentName, Placement
from ourvidz.pipelines.wan.reference_guidance import ReferencePlan

PartName = Literal["text_encoder", "transformer", "vae"]
PARTS: Mapping[PartName, tuple[ComponentName, ...]] = {
    "text_encoder": ("text_encoder",),
    "transformer": ("transformer",),
    "vae": ("vae", "image_encoder"),
}
"""What is moved together, in the order of the stages that use it. Both transformers, which may share weights,
are one part; references are encoded by VAE and image encoder."""
PART_OF: Mapping[ComponentName, PartName] = {
    component: part for part, components in PARTS.items() for component in components
}


class Components:
    """Holds the diffusers pipeline of a checkpoint (`pipe`), and in `vace` a VACE pipeline that shares
    everything with it but the transformer, or None. Nothing is loaded at first."""

    def __init__(self, placement: Placement, device: torch.device, options: WanOptions) -> None:
        self.vace: Any = None
        self._pipe: Any = None
        self.placement = placement
        self.memory: StageMemory = AlwaysResident()
        """Where the parts are moved one by one: has them on the device while they are used."""
        self._device = device
        self._options = options
        self._awake: set[PartName] = set()
        self._held: set[PartName] = set()
        self._sizes: dict[PartName, float] = {}

    @property
    def loaded(self) -> bool:
        """Whether a checkpoint is loaded."""
        return self._pipe is not None

    @property
    def asleep(self) -> bool:
        """Whether all weights are in the memory of the host, where no job can run."""
        return self.loaded and not self._awake

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline of the checkpoint. Raises `ModelLoadError` if it is not loaded."""
        if self._pipe is None:
            raise ModelLoadError("The Wan checkpoint is not loaded.")
        return self._pipe

    # -- loading
    def set_pipes(self, pipe: Any, vace: Any = None) -> None:
        """Set the main pipeline and the VACE pipeline as they were read, on the CPU. Optimizes the
        transformers. `load_part` moves their weights to the device.

        The VACE pipeline has all components but the transformer in common with the main one. Weights that are
        equal in both transformers are in memory once.
        """
        self._options.optimize(pipe.transformer)
        self._place_grouped(pipe, COMPONENTS)
        if vace is not None:
            self._options.optimize(vace.transformer)
            self._place_grouped(vace, ("transformer",))
            if not self._options.grouped:  # group offloading moves each weight separately
                loading.share_equal_weights(vace.transformer, pipe.transformer)
        self._pipe, self.vace = pipe, vace
        self._held, self._awake = set(self.parts), set()
        self._sizes = {part: weights_bytes(self._of(part)) / BYTES_PER_MIB for part in self.parts}

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts that are moved as wholes: all but those whose weights diffusers moves group by group."""
        is_grouped = self.placement.is_grouped
        return tuple(part for part, names in PARTS.items() if not all(map(is_grouped, names)))

    def holds(self, part: PartName) -> bool:
        """Whether the weights of a part are in memory, of the device or of the host."""
        return part in self._held

    def load_part(self, part: PartName) -> None:
        """Move a part to where it belongs while idle. Idempotent. Raises torch's error for a full device;
        then some of it may be there, and `sleep_part` or `drop_part` takes it back."""
        if part not in self._awake:
            if self.placement.moves_all:
                sleeping.move_to_device(self._of(part), self._device)
            else:
                for pipe in self._pipes():
                    self.placement.place(pipe, self._device, self._names(part))
            self._awake.add(part)

    def take_over(self, part: PartName, read: Callable[[Any, ComponentName], Any]) -> None:
        """Give a part that was dropped its weights again. `read` returns a component of a pipeline, on the
        CPU."""
        for pipe in self._pipes():
            for name in self._names(part):
                component = getattr(pipe, name, None)
                if component is not None and (pipe is self._pipe or name == "transformer"):
                    sleeping.take_over(component, read(pipe, name))
        self._held.add(part)

    def sleep_part(self, part: PartName) -> None:
        """Move a part to the memory of the host. Idempotent."""
        if part in self._held:
            self._awake.discard(part)
            sleeping.move_to_host(self._of(part))

    def drop_part(self, part: PartName) -> None:
        """Free the weights of a part; its components stay as empty shells. Idempotent."""
        if part in self._held:
            self._awake.discard(part)
            self._held.discard(part)
            sleeping.drop(self._of(part))

    def clear(self) -> None:
        """Drop all components. Idempotent."""
        self._pipe, self.vace = None, None
        self._awake, self._held = set(), set()

    def part_mib(self, part: PartName) -> float | None:
        """Size of a part's weights (MiB), wherever they are; None before they were read."""
        return self._sizes.get(part)

    def memory_mib(self) -> int:
        """Size of all weights in memory (MiB)."""
        return weights_mib(component for pipe in self._pipes() for component in pipe.components.values())

    def _pipes(self) -> list[Any]:
        return [pipe for pipe in (self._pipe, self.vace) if pipe is not None]

    def _names(self, part: PartName) -> tuple[ComponentName, ...]:
        return tuple(name for name in PARTS[part] if not self.placement.is_grouped(name))

    def _of(self, part: PartName) -> list[object]:
        """The components of a part."""
        return [getattr(pipe, name, None) for pipe in self._pipes() for name in self._names(part)]

    def _place_grouped(self, pipe: Any, names: tuple[ComponentName, ...]) -> None:
        grouped = tuple(name for name in names if self.placement.is_grouped(name))
        self.placement.place(pipe, self._device, grouped)

    # -- use
    def transformer(self, plan: ReferencePlan) -> Any:
        """The transformer that runs this plan."""
        return self._pipe_for(plan).transformer

    @contextmanager
    def in_use(
        self,
        component: ComponentName,
        plan: ReferencePlan | None = None,
        *,
        finished: Collection[PartName] = (),
    ) -> Iterator[torch.device]:
        """Have one component on the device where it runs inside this context; of two transformers, the one
        that runs the plan. Yields the device. `finished`: parts that the job needs no more."""
        with (
            self.memory.in_use(PART_OF[component], finished=finished),
            self.placement.in_use(self._pipe_for(plan), component, self._device) as device,
        ):
            yield device

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
