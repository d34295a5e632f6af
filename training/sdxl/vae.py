"""The first stage: pictures to latents and back."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.sdxl import models
from training.sdxl.recipe import Recipe
from training.world import Pixels, random_scene, render

EDGE_PX = 64
"""Of the pictures it learns from: a block of 8x8 pixels looks the same in a larger one."""

LARGE_SHARE = 0.12
"""How many whole pictures are pieces of one twice as large: the VAE serves other sizes too."""

PIECES_UNTIL = 0.55
"""Up to this progress it sees pieces around the shape, a quarter of the picture: most of a picture is plain,
and learning from it takes as long. The rest of the run it sees whole pictures, for the group norms' sake."""

KL_WEIGHT = 3e-8
STAGE = 1


def prepare(recipe: Recipe, folder: Path) -> tuple[diffusers.AutoencoderKL, Run]:
    """The VAE and its run, as far as an earlier one has come."""
    torch.manual_seed(recipe.seed)
    vae = models.vae(recipe.shape).to(best_device())
    length = Length(recipe.vae_steps, recipe.vae_minutes)
    run = Run(folder, "vae", {"vae": vae}, length=length, peak_lr=recipe.vae_lr, weight_decay=0.0)
    return vae, run


def train(recipe: Recipe, folder: Path) -> diffusers.AutoencoderKL:
    """Train to the end of the recipe, or go on with an earlier run; the trained VAE."""
    vae, run = prepare(recipe, folder)

    def loss_of(step: int, progress: float) -> torch.Tensor:
        draw = np.random.default_rng((recipe.seed, STAGE, step))
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        pictures = batch(draw, recipe.vae_batch, pieces=progress < PIECES_UNTIL)
        return loss(vae, to_tensor(pictures).to(vae.device), noise)

    run.train(loss_of)
    return vae.eval()


def loss(vae: diffusers.AutoencoderKL, pictures: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Absolute and squared error, and a hint of pressure on the latents to stay near a unit normal."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        latents = vae.encode(pictures).latent_dist
        decoded = vae.decode(latents.sample(noise)).sample
    error = decoded.float() - pictures
    kl = latents.kl().float().sum()
    whole: torch.Tensor = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl / len(pictures)
    return whole


def batch(draw: np.random.Generator, count: int, *, pieces: bool) -> Pixels:
    """Pictures of training scenes, whole or in pieces: (count, height, width, 3)."""
    one = _piece if pieces else _whole
    return np.stack([one(draw) for _ in range(count)])


def _whole(draw: np.random.Generator) -> Pixels:
    scene = random_scene(draw, held_out=False)
    edge = EDGE_PX
    if draw.random() >= LARGE_SHARE:
        return render(scene, edge, edge)
    left, top = draw.integers(0, edge + 1, 2)
    return render(scene, 2 * edge, 2 * edge)[top : top + edge, left : left + edge]


def _piece(draw: np.random.Generator) -> Pixels:
    """A square of half the edge, its middle somewhere on the shape."""
    scene = random_scene(draw, held_out=False)
    edge = EDGE_PX
    middle = np.array([scene.x, scene.y]) + draw.uniform(-1, 1, 2) * scene.radius
    left, top = np.clip(middle * edge - edge / 4, 0, edge / 2).astype(int)
    return render(scene, edge, edge)[top : top + edge // 2, left : left + edge // 2]


def to_tensor(pictures: Pixels) -> torch.Tensor:
    """(n, height, width, 3) in 8 bits to (n, 3, height, width) from -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def round_trip_db(vae: diffusers.AutoencoderKL, *, seed: int, count: int = 128, edge_px: int = 64) -> float:
    """Peak signal-to-noise ratio of held-out pictures after encoding and decoding, in decibels: of the mean
    squared error over all pictures. https://en.wikipedia.org/wiki/Peak_signal-to-noise_ratio"""
    draw = np.random.default_rng((seed, 99))
    errors = []
    for _ in range(count // 16):
        scenes = [random_scene(draw, held_out=True) for _ in range(16)]
        pictures = to_tensor(np.stack([render(scene, edge_px, edge_px) for scene in scenes])).to(vae.device)
        decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - pictures) / 2).square().mean().item())
    return float(-10 * np.log10(np.mean(errors)))
