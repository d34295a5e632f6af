"""The third stage: the UNet, and the two text encoders along with it."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.captions import caption
from training.runs import Length, Run
from training.sdxl import models
from training.sdxl.latents import Shelf
from training.sdxl.recipe import Recipe
from training.sdxl.tokens import token_ids, tokenizers
from training.world import Scene

STAGE = 5


class Denoiser:
    """The UNet with the words it listens to."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer, self.tokenizer_2 = tokenizers(recipe.seed)
        self.text, self.text_2 = models.text_encoders(recipe.shape, len(self.tokenizer))
        self.unet = models.unet(recipe.shape)
        self.device = best_device()
        for part in self.modules.values():
            part.to(self.device)
        self.unet.to(memory_format=torch.channels_last)
        self.scheduler: diffusers.EulerDiscreteScheduler = models.scheduler()
        self._signal = self.scheduler.alphas_cumprod.float().to(self.device)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What learns."""
        return {"unet": self.unet, "text": self.text, "text_2": self.text_2}

    def loss(self, shelf: Shelf, draw: np.random.Generator) -> torch.Tensor:
        """How far the predicted velocity is off (Salimans & Ho 2022, arXiv:2202.00512), for pictures and
        captions drawn from a shelf; what lies at the shape counts more. All noise levels count alike: the
        weights that favour low noise would starve the noisy steps, where it is decided what is where."""
        picked = draw.integers(len(shelf.scenes), size=self.recipe.unet_batch)
        latents = shelf.latents[picked].to(self.device)
        noise_seed = torch.Generator().manual_seed(int(draw.integers(2**62)))
        noise = torch.randn(latents.shape, generator=noise_seed).to(self.device)
        timesteps = self._timesteps(len(latents), draw).to(self.device)
        signal = self._signal[timesteps][:, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        tokens, pooled = self.words([shelf.scenes[k] for k in picked], draw)
        # In single precision: the backward pass of so small convolutions is eight times slower in bfloat16.
        predicted = self.unet(
            noisy, timesteps, tokens, added_cond_kwargs=_added(pooled, shelf.width_px, shelf.height_px)
        ).sample
        counts = shelf.weights[picked].to(self.device)
        weighted: torch.Tensor = ((predicted - velocity).square() * counts).mean()
        return weighted

    def words(self, scenes: list[Scene], draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions as the pipeline encodes them, some dropped for classifier-free guidance: half of those to
        nothing at all, which is what the pipeline guides away from when there is no negative prompt, half to
        an empty text, which is an empty negative prompt."""
        dropped = draw.random(len(scenes))
        nothing = dropped < self.recipe.prompt_dropout / 2
        empty = (dropped < self.recipe.prompt_dropout) & ~nothing
        texts = ["" if blank else caption(scene, draw) for scene, blank in zip(scenes, empty, strict=True)]
        tokens, pooled = self.encode(texts)
        said = torch.from_numpy(~nothing).to(tokens)
        return tokens * said[:, None, None], pooled * said[:, None]

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both encoders' last but one layer side by side (n, 77, width), and the second one's pooled text."""
        first, second = (
            encoder(token_ids(tokenizer, texts).to(self.device), output_hidden_states=True)
            for encoder, tokenizer in ((self.text, self.tokenizer), (self.text_2, self.tokenizer_2))
        )
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return tokens, second.text_embeds

    def _timesteps(self, count: int, draw: np.random.Generator) -> torch.Tensor:
        """Spread evenly over all timesteps in every batch: less noise in the loss than independent draws."""
        spread = (draw.permutation(count) + draw.random(count)) / count
        return torch.from_numpy((spread * len(self._signal)).astype(np.int64))

    def pipeline(self, vae: diffusers.AutoencoderKL) -> diffusers.StableDiffusionXLPipeline:
        """All parts as diffusers knows them."""
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


def _added(pooled: torch.Tensor, width_px: int, height_px: int) -> dict[str, torch.Tensor]:
    """SDXL's additional conditions: pooled text; original size, crop corner and target size."""
    times = torch.tensor([[height_px, width_px, 0, 0, height_px, width_px]]).to(pooled)
    return {"text_embeds": pooled, "time_ids": times.expand(len(pooled), -1)}


def prepare(recipe: Recipe, folder: Path) -> tuple[Denoiser, Run]:
    """The denoiser and its run, as far as an earlier one has come."""
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


def train(recipe: Recipe, folder: Path, shelves: list[Shelf]) -> Denoiser:
    """Train to the end of the recipe, or go on with an earlier run; the averaged weights."""
    denoiser, run = prepare(recipe, folder)
    shares = np.array(list(recipe.sizes.values()))

    def loss_of(step: int, _progress: float) -> torch.Tensor:
        draw = np.random.default_rng((recipe.seed, STAGE, step))
        return denoiser.loss(shelves[draw.choice(len(shelves), p=shares / shares.sum())], draw)

    run.train(loss_of)
    return averaged(denoiser, run)


def averaged(denoiser: Denoiser, run: Run) -> Denoiser:
    """The denoiser with the moving average of its weights, ready to be used."""
    run.use_average()
    for part in denoiser.modules.values():
        part.eval()
    return denoiser
