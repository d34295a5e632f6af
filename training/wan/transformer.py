"""Training of the transformer together with the text encoder."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.wan import models
from training.wan.latents import LatentSet
from training.wan.recipe import Recipe
from training.wan.tokenization import token_ids, train_tokenizer

STAGE = 13


class Denoiser:
    """The transformer with its tokenizer and text encoder."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = train_tokenizer(recipe.seed)
        self.text = models.build_text_encoder(recipe.shape, len(self.tokenizer))
        self.transformer = models.build_transformer(recipe.shape)
        self.device = best_device()
        for part in self.modules.values():
            part.to(self.device)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name."""
        return {"transformer": self.transformer, "text": self.text}

    def loss(self, data: LatentSet, rng: np.random.Generator) -> torch.Tensor:
        """Weighted squared error of the predicted flow from clip to noise (Lipman et al. 2022,
        arXiv:2210.02747) for a random batch."""
        indices = rng.integers(len(data.subjects), size=self.recipe.transformer_batch)
        latents = data.latents[indices].to(self.device)
        noise_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(latents.shape, generator=noise_rng).to(self.device)
        sigmas = self._sigmas(len(latents), rng).to(self.device)
        fraction = sigmas[:, None, None, None, None]
        noisy = (1 - fraction) * latents + fraction * noise
        texts = self._drop_some(data.captions(indices.tolist(), rng), rng)
        predicted = self.transformer(noisy, 1000 * sigmas, self.encode(texts), return_dict=False)[0]
        weights = data.weights[indices].to(self.device)
        loss: torch.Tensor = ((predicted - (noise - latents)).square() * weights).mean()
        return loss

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Prompt embeddings as the pipeline computes them: (texts, tokens, width), zeros after the end of a
        text."""
        ids, mask = (tensor.to(self.device) for tensor in token_ids(self.tokenizer, texts))
        hidden: torch.Tensor = self.text(ids, mask).last_hidden_state
        return hidden * mask[:, :, None]

    def _drop_some(self, texts: list[str], rng: np.random.Generator) -> list[str]:
        """The texts, some replaced by the empty text, which classifier-free guidance uses as the
        unconditional prompt."""
        dropped = rng.random(len(texts)) < self.recipe.prompt_dropout
        return ["" if blank else text for text, blank in zip(texts, dropped, strict=True)]

    def _sigmas(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """The fraction of noise in each clip, 0 to 1: evenly spread, then shifted towards noise, where
        sampling takes most of its steps."""
        fractions = (rng.permutation(count) + rng.random(count)) / count
        shift = self.recipe.train_shift
        return torch.from_numpy(shift * fractions / (1 + (shift - 1) * fractions)).float()

    def pipeline(self, vae: diffusers.AutoencoderKLWan) -> diffusers.WanPipeline:
        """The diffusers pipeline of all components."""
        return diffusers.WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text,
            vae=vae,
            scheduler=models.build_scheduler(),
            transformer=self.transformer,
        )


def prepare(recipe: Recipe, folder: Path) -> tuple[Denoiser, Run]:
    """The denoiser and its run, resumed from `folder`."""
    denoiser = Denoiser(recipe)
    run = Run(
        folder,
        "transformer",
        denoiser.modules,
        length=Length(recipe.transformer_steps, recipe.transformer_minutes),
        peak_lr=recipe.transformer_lr,
        ema_decay=recipe.ema_decay,
    )
    return denoiser, run


def train(recipe: Recipe, folder: Path, data: list[LatentSet]) -> Denoiser:
    """Train on `data` to the end of the recipe, resuming an earlier run in `folder` if there is one. Returns
    the denoiser with averaged weights."""
    denoiser, run = prepare(recipe, folder)
    shares = np.array(list(recipe.lengths.values()))

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
