"""LoRA files that a job may name: put on for it, and taken off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionXLPipeline

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import JobLora
from ourvidz.pipelines.sdxl import lora
from ourvidz.pipelines.sdxl.lora import Lora, LoraWeights


class JobLoras:
    """The files of one loaded pipeline. All are read at once, so that one that does not fit is heard of
    before any job asks for it; their numbers stay in host memory.

    The checkpoint comes back bit for bit: subtracting what was added would round. So there is also a copy in
    host memory of every weight that was changed once.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, files: Sequence[Lora]) -> None:
        self._files = {file.name: lora.read(pipe, file) for file in files}
        self._own: dict[torch.nn.Module, torch.Tensor] = {}

    @contextmanager
    def on(self, asked: Sequence[JobLora]) -> Iterator[bool]:
        """The weights with these added for a while; whether text encoders are among them.

        `ModelLoadError` for a name that this worker was given no file for. Whatever happens inside, and also
        where adding fails half-way, the checkpoint's own weights are there afterwards.
        """
        chosen = [(self._file(one.name), one.weight) for one in asked]
        try:
            for file, weight in chosen:
                self._remember(file.layers)
                file.add(weight)
            yield any(file.reaches_words for file, _ in chosen)
        finally:
            self._restore(layer for file, _ in chosen for layer in file.layers)

    def _file(self, name: str) -> LoraWeights:
        if name not in self._files:
            raise ModelLoadError(f"OURVIDZ_SDXL_JOB_LORAS has no {name} in this worker, though in the shim.")
        return self._files[name]

    @torch.no_grad()
    def _remember(self, layers: Iterable[torch.nn.Module]) -> None:
        for layer in layers:
            if layer not in self._own:
                self._own[layer] = lora.weights_of(layer).to("cpu", copy=True)

    @torch.no_grad()
    def _restore(self, layers: Iterable[torch.nn.Module]) -> None:
        for layer in layers:
            own = self._own.get(layer)
            if own is not None:
                lora.weights_of(layer).copy_(own)
