"""Training of the VAE."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.scenes import Pixels, random_scene, render
from training.sdxl import models
from training.sdxl.recipe import Recipe

EDGE_PX = 64
"""Size of the training images. Blocks of 8x8 pixels look the same in larger images."""

LARGE_SHARE = 0.12
"""Proportion of whole images that are crops of one twice as large, for sizes other than this."""

CROPS_UNTIL = 0.55
"""Up to this progress the batches are crops around the shape of a quarter of the area, because most of an
image is plain; afterwards they are whole images, whose statistics the group norms need."""

KL_WEIGHT = 3e-8
BATCH = 16
"""Images that the evaluation encodes at once."""
STAGE = 1


def prepare(recipe: Recipe, folder: Path) -> tuple[diffusers.AutoencoderKL, Run]:
    """The VAE and its run, resumed from `folder`."""
    torch.manual_seed(recipe.seed)
    vae = models.build_vae(recipe.shape).to(best_device())
    length = Length(recipe.vae_steps, recipe.vae_minutes)
    run = Run(folder, "vae", {"vae": vae}, length=length, peak_lr=recipe.vae_lr, weight_decay=0.0)
    return vae, run


def train(recipe: Recipe, folder: Path) -> diffusers.AutoencoderKL:
    """Train the VAE to the end of the recipe, resuming an earlier run, and return it."""
    vae, run = prepare(recipe, folder)

    def step_loss(step: int, progress: float) -> torch.Tensor:
        rng = np.random.default_rng((recipe.seed, STAGE, step))
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        images = batch(rng, recipe.vae_batch, crops=progress < CROPS_UNTIL)
        return loss(vae, to_tensor(images).to(vae.device), noise)

    run.train(step_loss)
    return vae.eval()


def loss(vae: diffusers.AutoencoderKL, images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Absolute error, squared error and KL divergence of the latents from a unit normal, weighted."""
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = vae.encode(images).latent_dist
        decoded = vae.decode(latents.sample(noise)).sample
    error = decoded.float() - images
    kl = latents.kl().float().sum()
    total: torch.Tensor = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl / len(images)
    return total


def batch(rng: np.random.Generator, count: int, *, crops: bool) -> Pixels:
    """Images of training scenes, whole or cropped: (count, height, width, 3)."""
    image = _crop if crops else _whole_image
    return np.stack([image(rng) for _ in range(count)])


def _whole_image(rng: np.random.Generator) -> Pixels:
    """A random training image, or a random quarter of one that is twice as large."""
    scene = random_scene(rng, held_out=False)
    edge = EDGE_PX
    if rng.random() >= LARGE_SHARE:
        return render(scene, edge, edge)
    left, top = rng.integers(0, edge + 1, 2)
    return render(scene, 2 * edge, 2 * edge)[top : top + edge, left : left + edge]


def _crop(rng: np.random.Generator) -> Pixels:
    """A square of half the edge whose centre is within the extent of the shape."""
    scene = random_scene(rng, held_out=False)
    edge = EDGE_PX
    centre = np.array([scene.x, scene.y]) + rng.uniform(-1, 1, 2) * scene.radius
    left, top = np.clip(centre * edge - edge / 4, 0, edge / 2).astype(int)
    return render(scene, edge, edge)[top : top + edge // 2, left : left + edge // 2]


def to_tensor(images: Pixels) -> torch.Tensor:
    """8-bit images, (n, height, width, 3), as a tensor, (n, 3, height, width), from -1 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def reconstruction_db(
    vae: diffusers.AutoencoderKL, *, seed: int, count: int = 128, edge_px: int = 64
) -> float:
    """Peak signal-to-noise ratio of the reconstructions of held-out images, in decibels, from the mean
    squared error over all of them. https://en.wikipedia.org/wiki/Peak_signal-to-noise_ratio"""
    rng = np.random.default_rng((seed, 99))
    errors = []
    for start in range(0, count, BATCH):
        scenes = [random_scene(rng, held_out=True) for _ in range(min(BATCH, count - start))]
        images = to_tensor(np.stack([render(scene, edge_px, edge_px) for scene in scenes])).to(vae.device)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - images) / 2).square().mean().item())
    return float(-10 * np.log10(np.mean(errors)))
