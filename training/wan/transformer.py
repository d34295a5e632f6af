"""The third stage: the transformer, and the text encoder along with it."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.wan import models
from training.wan.latents import Shelf
from training.wan.recipe import Recipe
from training.wan.tokens import token_ids, tokenizer

STAGE = 13


class Denoiser:
    """The transformer with the words it listens to."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = tokenizer(recipe.seed)
        self.text = models.text_encoder(recipe.shape, len(self.tokenizer))
        self.transformer = models.transformer(recipe.shape)
        self.device = best_device()
        for part in self.modules.values():
            part.to(self.device)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What learns."""
        return {"transformer": self.transformer, "text": self.text}

    def loss(self, shelf: Shelf, draw: np.random.Generator) -> torch.Tensor:
        """How far the predicted flow from clip to noise is off (Lipman et al. 2022, arXiv:2210.02747), for
        clips and captions drawn from a shelf; what lies at the shape counts more."""
        picked = draw.integers(len(shelf.shown), size=self.recipe.transformer_batch)
        latents = shelf.latents[picked].to(self.device)
        noise_seed = torch.Generator().manual_seed(int(draw.integers(2**62)))
        noise = torch.randn(latents.shape, generator=noise_seed).to(self.device)
        sigmas = self._sigmas(len(latents), draw).to(self.device)
        mixed = sigmas[:, None, None, None, None]
        noisy = (1 - mixed) * latents + mixed * noise
        texts = self._some_dropped(shelf.captions(picked.tolist(), draw), draw)
        predicted = self.transformer(noisy, 1000 * sigmas, self.encode(texts), return_dict=False)[0]
        counts = shelf.weights[picked].to(self.device)
        weighted: torch.Tensor = ((predicted - (noise - latents)).square() * counts).mean()
        return weighted

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Words as the pipeline encodes them: (texts, tokens, width), zeros behind the end of a text."""
        ids, mask = (one.to(self.device) for one in token_ids(self.tokenizer, texts))
        hidden: torch.Tensor = self.text(ids, mask).last_hidden_state
        return hidden * mask[:, :, None]

    def _some_dropped(self, texts: list[str], draw: np.random.Generator) -> list[str]:
        """Some texts empty, for classifier-free guidance: an empty text is what the pipeline guides away
        from."""
        dropped = draw.random(len(texts)) < self.recipe.prompt_dropout
        return ["" if blank else text for text, blank in zip(texts, dropped, strict=True)]

    def _sigmas(self, count: int, draw: np.random.Generator) -> torch.Tensor:
        """How much of each clip is noise, 0 to 1: evenly spread, then shifted towards noise, where the
        pipeline takes most of its steps."""
        spread = (draw.permutation(count) + draw.random(count)) / count
        shift = self.recipe.train_shift
        return torch.from_numpy(shift * spread / (1 + (shift - 1) * spread)).float()

    def pipeline(self, vae: diffusers.AutoencoderKLWan) -> diffusers.WanPipeline:
        """All parts as diffusers knows them."""
        return diffusers.WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text,
            vae=vae,
            scheduler=models.scheduler(),
            transformer=self.transformer,
        )


def prepare(recipe: Recipe, folder: Path) -> tuple[Denoiser, Run]:
    """The denoiser and its run, as far as an earlier one has come."""
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


def train(recipe: Recipe, folder: Path, shelves: list[Shelf]) -> Denoiser:
    """Train to the end of the recipe, or go on with an earlier run; the averaged weights."""
    denoiser, run = prepare(recipe, folder)
    shares = np.array(list(recipe.lengths.values()))

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
