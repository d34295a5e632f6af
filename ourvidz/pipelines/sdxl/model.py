"""A loaded SDXL checkpoint and the components that work on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch

from ourvidz import log
from ourvidz.jobs.job import JobLora
from ourvidz.pipelines import identity
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.devices import DTYPES
from ourvidz.pipelines.identity import NO_WEIGHTS, Weights
from ourvidz.pipelines.loading import HALF_BYTES, loading, weights_mib
from ourvidz.pipelines.previews import LatentPreviewer, fit_previewer
from ourvidz.pipelines.sdxl import lora, schedulers, single_file
from ourvidz.pipelines.sdxl.ip_adapter import IPAdapter
from ourvidz.pipelines.sdxl.job_loras import JobLoras
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.prompt_encoding import PromptEncoder
from ourvidz.pipelines.sdxl.vae import ImageVAE
from ourvidz.pipelines.tensor_cache import TensorCache

_log = log.get(__name__)


class SDXLModel:
    """One loaded checkpoint. Text-to-image and image-to-image share all weights; each has its own
    scheduler.

    `cache` keeps encoded prompts and references under the name of the loaded `weights`.
    """

    def __init__(
        self,
        pipe: diffusers.StableDiffusionXLPipeline,
        options: SDXLOptions,
        cache: TensorCache | None = None,
        *,
        weights: Weights = NO_WEIGHTS,
    ) -> None:
        self.pipe = pipe
        self.weights = weights
        self._cache = cache
        wide_dtype = DTYPES[options.vae_dtype or "float32"]
        self.vae = ImageVAE(pipe, cache, weights=weights.name, wide_dtype=wide_dtype)
        self.prompt_encoder = PromptEncoder(pipe, cache, weights=weights.name)
        self.adapter: IPAdapter | None = None
        if options.ip_adapter:
            self.adapter = IPAdapter(pipe, options.ip_adapter, cache, weights=weights.name)
        self._loras = JobLoras(pipe, options.job_loras)
        self.previewer = _fit_previewer(self.vae) if options.previews else None

    @contextmanager
    def with_loras(self, requested: Sequence[JobLora]) -> Iterator[None]:
        """Apply these LoRAs inside this context, for one job. Raises `ModelLoadError` for an unknown name."""
        prompt_encoder = self.prompt_encoder
        with self._loras.applied(requested) as text_encoder_loras:
            if text_encoder_loras:
                # A new one, because Compel keeps the embedding of the empty prompt.
                weights = f"{self.weights.name} {text_encoder_loras!r}"
                self.prompt_encoder = PromptEncoder(self.pipe, self._cache, weights=weights)
            try:
                yield
            finally:
                self.prompt_encoder = prompt_encoder

    @property
    def has_guidance_input(self) -> bool:
        """Whether the UNet was distilled to take the guidance scale as an input. Such a UNet runs once per
        step, without a negative prompt."""
        return self.pipe.unet.config.time_cond_proj_dim is not None

    def components(self) -> list[object]:
        """Everything that may have weights."""
        return [*self.pipe.components.values(), None if self.adapter is None else self.adapter.encoder]

    def info(self) -> dict[str, Any]:
        """Native size (px), scheduler class and size of the weights (MiB)."""
        return {
            "native_size": int(self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor),
            "scheduler": type(self.pipe.scheduler).__name__,
            "memory_mib": weights_mib(self.components()),
        }


UNLOADED_INFO = {"native_size": None, "scheduler": None, "memory_mib": 0}
"""`SDXLModel.info()` of a pipeline that is not loaded."""


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    options: SDXLOptions,
    cache: TensorCache | None = None,
) -> SDXLModel:
    """Load a checkpoint onto `device` and apply the options. Raises `ModelLoadError`."""
    with loading(checkpoint):
        weights = identity.loaded_weights(checkpoint, options.added_files())
        pipe = _read_pipeline(checkpoint, dtype).to(device)
        pipe.scheduler = schedulers.build_scheduler(
            options.scheduler, pipe.scheduler, few_steps=options.few_steps
        )
        for file in options.loras:
            lora.merge_lora(pipe, file)
        model = SDXLModel(pipe, options, cache, weights=weights)
        options.optimize(pipe)
        return model


def _fit_previewer(vae: ImageVAE) -> LatentPreviewer | None:
    """A previewer for this VAE; None, which switches previews off, if that fails."""
    try:
        return fit_previewer(vae)
    except Exception:  # noqa: BLE001  the checkpoint is usable without previews
        _log.exception("previews_off")
        return None


def _read_pipeline(checkpoint: Checkpoint, dtype: torch.dtype) -> diffusers.StableDiffusionXLPipeline:
    """Read the pipeline from disk. Never from the hub, and never pickles, which can run code."""
    config = checkpoint.config or checkpoint.path
    vae = None if checkpoint.vae is None else single_file.read_vae(checkpoint.vae, config, dtype)
    if checkpoint.kind == "single file":
        return single_file.read_single_file(checkpoint.path, config, dtype, vae=vae)
    replaced = {} if vae is None else {"vae": vae}
    return diffusers.StableDiffusionXLPipeline.from_pretrained(
        checkpoint.path,
        use_safetensors=True,
        variant=checkpoint.variant(half=dtype.itemsize == HALF_BYTES),
        dtype=dtype,
        local_files_only=True,
        add_watermarker=False,
        **replaced,
    )
