"""An SDXL checkpoint on the device, and what works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch

from ourvidz import log
from ourvidz.jobs.job import JobLora
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import reading, weights_mib
from ourvidz.pipelines.previews import LatentColours, learn_colours
from ourvidz.pipelines.sdxl import lora, schedulers
from ourvidz.pipelines.sdxl.conditioning import Conditioner
from ourvidz.pipelines.sdxl.ip_adapter import IPAdapter
from ourvidz.pipelines.sdxl.job_loras import JobLoras
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.vae import Codec

_log = log.get(__name__)


class WarmSDXL:
    """One loaded checkpoint. Text-to-image and image-to-image share every weight, each with a scheduler of
    its own."""

    def __init__(self, pipe: diffusers.StableDiffusionXLPipeline, options: SDXLOptions) -> None:
        self.pipe = pipe
        self.codec = Codec(pipe)
        self.words = Conditioner(pipe)
        self.adapter = IPAdapter(pipe, options.ip_adapter) if options.ip_adapter else None
        self._loras = JobLoras(pipe, options.job_loras)
        self.colours = _colours(self.codec) if options.previews else None

    @contextmanager
    def with_loras(self, asked: Sequence[JobLora]) -> Iterator[None]:
        """Everything here with these LoRA files on, for one job. `ModelLoadError` for one there is no file
        for."""
        words = self.words
        with self._loras.on(asked) as reaches_words:
            if reaches_words:
                # A conditioner remembers what its encoders make of the empty prompt.
                self.words = Conditioner(self.pipe)
            try:
                yield
            finally:
                self.words = words

    @property
    def takes_guidance(self) -> bool:
        """Whether this UNet was distilled to be told the guidance: it is asked once a step whatever it is."""
        told: bool = self.pipe.unet.config.time_cond_proj_dim is not None
        return told

    def info(self) -> dict[str, Any]:
        """Native size in pixels, scheduler, and what the weights take (MiB)."""
        encoder = None if self.adapter is None else self.adapter.encoder
        return {
            "native_size": int(self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor),
            "scheduler": type(self.pipe.scheduler).__name__,
            "memory_mib": weights_mib([*self.pipe.components.values(), encoder]),
        }


COLD = {"native_size": None, "scheduler": None, "memory_mib": 0}
"""What `info` says while nothing is loaded."""


def warm(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, options: SDXLOptions) -> WarmSDXL:
    """The checkpoint on `device`, as the options want it. `ModelLoadError` says what is wrong."""
    with reading(checkpoint):
        pipe = _read(checkpoint, dtype).to(device)
        pipe.scheduler = schedulers.build(options.scheduler, pipe.scheduler, few_steps=options.few_steps)
        for file in options.loras:
            lora.merge(pipe, file)
        found = WarmSDXL(pipe, options)
        options.quicken(pipe)
        return found


def _colours(codec: Codec) -> LatentColours | None:
    """What latents look like; None, and no previews, where this VAE does not let it be learned."""
    try:
        return learn_colours(codec)
    except Exception:  # noqa: BLE001  previews are a courtesy: the checkpoint is of use without them
        _log.exception("previews_off")
        return None


def _read(found: Checkpoint, dtype: torch.dtype) -> diffusers.StableDiffusionXLPipeline:
    """The pipeline from disk. No hub, and no pickles: they can run code."""
    options = {"dtype": dtype, "local_files_only": True, "add_watermarker": False}
    if found.kind == "single file":
        return diffusers.StableDiffusionXLPipeline.from_single_file(
            str(found.path), config=str(found.config), **options
        )
    return diffusers.StableDiffusionXLPipeline.from_pretrained(
        found.path, use_safetensors=True, variant=found.variant, **options
    )
