"""The training images as latents, encoded once before the UNet is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import diffusers
import numpy as np
import torch

from training.scenes import REACH, Scene, random_scene, render
from training.sdxl.models import NATIVE_PX
from training.sdxl.recipe import Recipe
from training.sdxl.vae import to_tensor

STAGE = 2
BATCH = 64
FILE = "latents.pt"
SHAPE_WEIGHT = 3.0
"""Loss weight of latents at the shape relative to the background."""


@dataclass(frozen=True, slots=True)
class LatentSet:
    """Images of one size: their scenes, latents (n, 4, rows, columns) and loss weights (n, 1, rows, columns),
    which are 1 on average, in the same order."""

    width_px: int
    height_px: int
    scenes: list[Scene]
    latents: torch.Tensor
    weights: torch.Tensor


def write(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKL) -> None:
    """Normalize the VAE's latents, encode the training images and write both into `folder`, unless the file
    exists."""
    if (folder / FILE).is_file():
        return
    normalize_latents(vae, seed=recipe.seed, count=recipe.normalization_images)
    sets = []
    for size, scenes in training_scenes(recipe):
        click.echo(f"latents: {len(scenes)} images of {size[0]}x{size[1]} px")
        sets.append((size, torch.cat(list(_encode(vae, scenes, *size)))))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.writing"
    torch.save({"vae": vae.state_dict(), "shelves": sets}, partial)
    partial.replace(folder / FILE)


def read(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKL) -> list[LatentSet]:
    """The latents that `write` wrote. `vae` gets the weights that they were encoded with."""
    saved = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(scaling_factor=1.0)
    return [
        LatentSet(size[0], size[1], scenes, latents.float(), loss_weights(scenes, latents.shape[-2:]))
        for (size, latents), (_, scenes) in zip(saved["shelves"], training_scenes(recipe), strict=True)
    ]


def loss_weights(scenes: list[Scene], shape: Sequence[int]) -> torch.Tensor:
    """Loss weights of latents of `shape` (rows, columns): (scenes, 1, rows, columns), 1 on average.

    Latents at the shape weigh more, because the plain background, most of an image, is learned much sooner.
    """
    rows, columns = shape
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    distances = [np.maximum(abs(x - scene.x), abs(y - scene.y)) - REACH * scene.radius for scene in scenes]
    weights = np.where(np.stack(distances) < 0.5 / min(rows, columns), SHAPE_WEIGHT, 1.0)
    weights /= weights.mean(axis=(1, 2), keepdims=True)
    return torch.from_numpy(weights[:, None]).float()


def training_scenes(recipe: Recipe) -> Iterator[tuple[tuple[int, int], list[Scene]]]:
    """The training scenes by (width, height) in pixels; every call gives the same scenes."""
    for index, (size, share) in enumerate(recipe.sizes.items()):
        count = max(1, round(share * recipe.latents))
        generators = (np.random.default_rng((recipe.seed, STAGE, index, k)) for k in range(count))
        yield size, [random_scene(rng, held_out=False) for rng in generators]


@torch.no_grad()
def _encode(
    vae: diffusers.AutoencoderKL, scenes: list[Scene], width_px: int, height_px: int
) -> Iterator[torch.Tensor]:
    """Yield the latents of rendered scenes in batches, in half precision."""
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        images = to_tensor(np.stack([render(scene, width_px, height_px) for scene in batch]))
        yield vae.encode(images.to(vae.device)).latent_dist.mode().half().cpu()


@torch.no_grad()
def normalize_latents(vae: diffusers.AutoencoderKL, *, seed: int, count: int = 256) -> None:
    """Change the 1x1 convolutions next to the latents so that every channel has mean 0 and deviation 1
    over `count` training images.

    SDXL pipelines have one scaling factor for all channels and no shift; it becomes 1.
    """
    scenes = [random_scene(np.random.default_rng((seed, 4, k)), held_out=False) for k in range(count)]
    latents = torch.cat(list(_encode(vae, scenes, NATIVE_PX, NATIVE_PX))).float()
    latents = latents.to(vae.device)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    # The second half of the channels is the logarithm of the variance.
    before.bias[channels:] -= 2 * deviation.log()
    vae.register_to_config(scaling_factor=1.0)
