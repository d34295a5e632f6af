"""LoRA files that jobs may request: applied for one job, then removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionXLPipeline

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import JobLora
from ourvidz.pipelines.sdxl import lora
from ourvidz.pipelines.sdxl.lora import LoraFile, LoraWeights


class JobLoras:
    """The LoRA files available to the jobs of one loaded pipeline.

    All files are read when the checkpoint is loaded, so that an unsuitable file is reported before any job
    requests it; their weights stay in host memory. The checkpoint's own weights are restored bit for bit from
    a copy in host memory: subtracting the LoRA again would round.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, files: Sequence[LoraFile]) -> None:
        self._loras = {file.name: lora.read_lora(pipe, file) for file in files}
        self._originals: dict[torch.nn.Module, torch.Tensor] = {}

    @contextmanager
    def applied(self, requested: Sequence[JobLora]) -> Iterator[tuple[JobLora, ...]]:
        """Add the requested LoRAs to the weights inside this context; yields those that change a text
        encoder.

        Raises `ModelLoadError` for an unknown name. The checkpoint's own weights are restored afterwards,
        also if adding fails half-way.
        """
        selected = [(self._get(entry.name), entry.weight) for entry in requested]
        try:
            for weights, scale in selected:
                self._back_up(weights.layers)
                weights.add(scale)
            yield tuple(entry for entry in requested if self._get(entry.name).changes_text_encoder)
        finally:
            self._restore(layer for weights, _ in selected for layer in weights.layers)

    def _get(self, name: str) -> LoraWeights:
        if name not in self._loras:
            raise ModelLoadError(f"OURVIDZ_SDXL_JOB_LORAS has no {name} in this worker, though in the shim.")
        return self._loras[name]

    @torch.no_grad()
    def _back_up(self, layers: Iterable[torch.nn.Module]) -> None:
        """Copy the weights of layers that have no copy yet to the CPU."""
        for layer in layers:
            if layer not in self._originals:
                self._originals[layer] = lora.weight_of(layer).to("cpu", copy=True)

    @torch.no_grad()
    def _restore(self, layers: Iterable[torch.nn.Module]) -> None:
        """Copy the backed-up weights into those layers that have a backup."""
        for layer in layers:
            original = self._originals.get(layer)
            if original is not None:
                lora.weight_of(layer).copy_(original)
