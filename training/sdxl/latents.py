"""The second stage: training pictures as latents, once, so that the UNet's training need not encode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import diffusers
import numpy as np
import torch

from training.sdxl.models import NATIVE_PX
from training.sdxl.recipe import Recipe
from training.sdxl.vae import to_tensor
from training.world import REACH, Scene, random_scene, render

STAGE = 2
BATCH = 64
FILE = "latents.pt"
SHAPE_COUNTS = 3.0


@dataclass(frozen=True, slots=True)
class Shelf:
    """Pictures of one size: the scenes and, in the same order, their latents (n, 4, rows, columns) and how
    much each of these counts (n, 1, rows, columns), 1 on average."""

    width_px: int
    height_px: int
    scenes: list[Scene]
    latents: torch.Tensor
    weights: torch.Tensor


def make(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKL) -> None:
    """Centre and scale the VAE's latents, encode the training pictures and write both into `folder`."""
    if (folder / FILE).is_file():
        return
    whiten(vae, seed=recipe.seed)
    shelves = []
    for size, scenes in sized_scenes(recipe):
        click.echo(f"latents: {len(scenes)} pictures of {size[0]}x{size[1]} px")
        shelves.append((size, torch.cat(list(_encoded(vae, scenes, *size)))))
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{FILE}.writing"
    torch.save({"vae": vae.state_dict(), "shelves": shelves}, aside)
    aside.replace(folder / FILE)


def read(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKL) -> list[Shelf]:
    """What `make` wrote; `vae` becomes the one whose latents they are."""
    kept = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    vae.load_state_dict(kept["vae"])
    vae.register_to_config(scaling_factor=1.0)
    return [
        Shelf(size[0], size[1], scenes, latents.float(), weights(scenes, latents.shape[-2:]))
        for (size, latents), (_, scenes) in zip(kept["shelves"], sized_scenes(recipe), strict=True)
    ]


def weights(scenes: list[Scene], shape: Sequence[int]) -> torch.Tensor:
    """How much every latent counts: those at the shape more, for most of a picture is plain background, which
    is learnt long before a star differs from a circle. (scenes, 1, rows, columns), 1 on average."""
    rows, columns = shape
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    far = [np.maximum(abs(x - one.x), abs(y - one.y)) - REACH * one.radius for one in scenes]
    counts = np.where(np.stack(far) < 0.5 / min(rows, columns), SHAPE_COUNTS, 1.0)
    counts /= counts.mean(axis=(1, 2), keepdims=True)
    return torch.from_numpy(counts[:, None]).float()


def sized_scenes(recipe: Recipe) -> Iterator[tuple[tuple[int, int], list[Scene]]]:
    """The training scenes of every size, the same on every call."""
    for index, (size, share) in enumerate(recipe.sizes.items()):
        count = max(1, round(share * recipe.latents))
        draws = (np.random.default_rng((recipe.seed, STAGE, index, k)) for k in range(count))
        yield size, [random_scene(draw, held_out=False) for draw in draws]


@torch.no_grad()
def _encoded(
    vae: diffusers.AutoencoderKL, scenes: list[Scene], width_px: int, height_px: int
) -> Iterator[torch.Tensor]:
    for start in range(0, len(scenes), BATCH):
        some = scenes[start : start + BATCH]
        pictures = to_tensor(np.stack([render(scene, width_px, height_px) for scene in some]))
        yield vae.encode(pictures.to(vae.device)).latent_dist.mode().half().cpu()


@torch.no_grad()
def whiten(vae: diffusers.AutoencoderKL, *, seed: int) -> None:
    """Change the VAE's outermost 1x1 convolutions so that every latent channel has mean 0 and deviation 1.

    SDXL's pipelines know one scaling factor for all channels and no shift; this way it is simply 1.
    """
    scenes = [random_scene(np.random.default_rng((seed, 4, k)), held_out=False) for k in range(256)]
    latents = torch.cat(list(_encoded(vae, scenes, NATIVE_PX, NATIVE_PX))).float()
    latents = latents.to(vae.device)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    # The other half is the logarithm of the variance.
    before.bias[channels:] -= 2 * deviation.log()
    vae.register_to_config(scaling_factor=1.0)
