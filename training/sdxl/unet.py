"""Training of the UNet together with both text encoders."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.captions import caption
from training.runs import Length, Run
from training.scenes import Scene
from training.sdxl import models
from training.sdxl.latents import LatentSet
from training.sdxl.recipe import Recipe
from training.sdxl.tokenization import token_ids, train_tokenizers

STAGE = 5


class Denoiser:
    """The UNet with its tokenizers and text encoders."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer, self.tokenizer_2 = train_tokenizers(recipe.seed)
        self.text, self.text_2 = models.build_text_encoders(recipe.shape, len(self.tokenizer))
        self.unet = models.build_unet(recipe.shape)
        self.device = best_device()
        for part in self.modules.values():
            part.to(self.device)
        self.unet.to(memory_format=torch.channels_last)
        self.scheduler: diffusers.EulerDiscreteScheduler = models.build_scheduler()
        self._alphas = self.scheduler.alphas_cumprod.float().to(self.device)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name."""
        return {"unet": self.unet, "text": self.text, "text_2": self.text_2}

    def loss(self, data: LatentSet, rng: np.random.Generator) -> torch.Tensor:
        """Weighted squared error of the predicted velocity (Salimans & Ho 2022, arXiv:2202.00512) for a
        random batch. All noise levels weigh the same: weights that favour low noise would neglect the noisy
        steps, which decide the composition."""
        indices = rng.integers(len(data.scenes), size=self.recipe.unet_batch)
        latents = data.latents[indices].to(self.device)
        noise_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(latents.shape, generator=noise_rng).to(self.device)
        timesteps = self._timesteps(len(latents), rng).to(self.device)
        signal = self._alphas[timesteps][:, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        tokens, pooled = self.encode_captions([data.scenes[k] for k in indices], rng)
        # In single precision: the backward pass of such small convolutions is eight times slower in bfloat16.
        predicted = self.unet(
            noisy,
            timesteps,
            tokens,
            added_cond_kwargs=_added_conditions(pooled, data.width_px, data.height_px),
        ).sample
        weights = data.weights[indices].to(self.device)
        loss: torch.Tensor = ((predicted - velocity).square() * weights).mean()
        return loss

    def encode_captions(
        self, scenes: list[Scene], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings and pooled embeddings of random captions, some dropped for classifier-free
        guidance.

        Half of the dropped ones become zeros, which the pipeline uses without a negative prompt, half an
        empty text, which is an empty negative prompt.
        """
        dropped = rng.random(len(scenes))
        zeroed = dropped < self.recipe.prompt_dropout / 2
        empty = (dropped < self.recipe.prompt_dropout) & ~zeroed
        texts = ["" if blank else caption(scene, rng) for scene, blank in zip(scenes, empty, strict=True)]
        tokens, pooled = self.encode(texts)
        kept = torch.from_numpy(~zeroed).to(tokens)
        return tokens * kept[:, None, None], pooled * kept[:, None]

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The concatenated penultimate layers of both encoders, (n, 77, width), and the pooled embeddings of
        the second, (n, width)."""
        first, second = (
            encoder(token_ids(tokenizer, texts).to(self.device), output_hidden_states=True)
            for encoder, tokenizer in ((self.text, self.tokenizer), (self.text_2, self.tokenizer_2))
        )
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return tokens, second.text_embeds

    def _timesteps(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Timesteps spread evenly over all noise levels, for less noise in the loss than independent ones."""
        fractions = (rng.permutation(count) + rng.random(count)) / count
        return torch.from_numpy((fractions * len(self._alphas)).astype(np.int64))

    def pipeline(self, vae: diffusers.AutoencoderKL) -> diffusers.StableDiffusionXLPipeline:
        """The diffusers pipeline of all components."""
        return diffusers.StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=self.text,
            text_encoder_2=self.text_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=self.scheduler,
            add_watermarker=False,
        )


def _added_conditions(pooled: torch.Tensor, width_px: int, height_px: int) -> dict[str, torch.Tensor]:
    """SDXL's additional conditions: pooled embeddings, and original size, crop corner and target size."""
    sizes = torch.tensor([[height_px, width_px, 0, 0, height_px, width_px]]).to(pooled)
    return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


def prepare(recipe: Recipe, folder: Path) -> tuple[Denoiser, Run]:
    """The denoiser and its run, resumed from `folder`."""
    denoiser = Denoiser(recipe)
    run = Run(
        folder,
        "unet",
        denoiser.modules,
        length=Length(recipe.unet_steps, recipe.unet_minutes),
        peak_lr=recipe.unet_lr,
        ema_decay=recipe.ema_decay,
    )
    return denoiser, run


def train(recipe: Recipe, folder: Path, data: list[LatentSet]) -> Denoiser:
    """Train on the latents of `write` to the end of the recipe, resuming an earlier run; the averaged
    denoiser."""
    denoiser, run = prepare(recipe, folder)
    shares = np.array(list(recipe.sizes.values()))

    def step_loss(step: int, _progress: float) -> torch.Tensor:
        rng = np.random.default_rng((recipe.seed, STAGE, step))
        return denoiser.loss(data[rng.choice(len(data), p=shares / shares.sum())], rng)

    run.train(step_loss)
    return averaged(denoiser, run)


def averaged(denoiser: Denoiser, run: Run) -> Denoiser:
    """The denoiser with the moving average of its weights, in evaluation mode."""
    run.use_average()
    for part in denoiser.modules.values():
        part.eval()
    return denoiser
