"""Training of the VAE."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.scenes import Clip, Pixels, geometry, random_clip, render_clip
from training.wan.models import NATIVE_FRAMES, NATIVE_PX, build_vae
from training.wan.recipe import Recipe

STAGE = 11
CROP_PX = 32
CROPS_UNTIL = 0.7
"""Up to this progress the batches are crops around the shape, because most of a clip is plain and still."""
KL_WEIGHT = 1e-7


def prepare(recipe: Recipe, folder: Path) -> tuple[diffusers.AutoencoderKLWan, Run]:
    """The VAE and its run, resumed from `folder`."""
    torch.manual_seed(recipe.seed)
    vae = build_vae(recipe.shape).to(best_device())
    length = Length(recipe.vae_steps, recipe.vae_minutes)
    run = Run(folder, "vae", {"vae": vae}, length=length, peak_lr=recipe.vae_lr, weight_decay=0.0)
    return vae, run


def train(recipe: Recipe, folder: Path) -> diffusers.AutoencoderKLWan:
    """Train the VAE to the end of the recipe, resuming an earlier run, and return it."""
    vae, run = prepare(recipe, folder)

    def step_loss(step: int, progress: float) -> torch.Tensor:
        rng = np.random.default_rng((recipe.seed, STAGE, step))
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        crops = progress < CROPS_UNTIL
        count = recipe.vae_batch if crops else max(recipe.vae_batch // 2, 1)
        return loss(vae, to_tensor(batch(rng, count, crops=crops)).to(vae.device), noise)

    run.train(step_loss)
    return vae.eval()


def loss(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Absolute error, squared error and KL divergence of the latents from a unit normal, weighted."""
    latents = vae.encode(clips).latent_dist
    error = vae.decode(latents.sample(noise)).sample - clips
    kl = latents.kl().sum()
    total: torch.Tensor = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl / len(clips)
    return total


def batch(rng: np.random.Generator, count: int, *, crops: bool) -> Pixels:
    """Training clips, whole or cropped, all of one length: (count, frames, height, width, 3)."""
    frames = int(rng.choice((5, 9, 13))) if crops else int(rng.choice((9, 17)))
    return np.stack([_crop(rng, frames) if crops else _whole_clip(rng, frames) for _ in range(count)])


def _whole_clip(rng: np.random.Generator, frames: int) -> Pixels:
    """A random training clip in the native size."""
    return render_clip(random_clip(rng, held_out=False), frames, NATIVE_PX, NATIVE_PX)


def _crop(rng: np.random.Generator, frames: int) -> Pixels:
    """Consecutive frames of a clip, cropped to a square that overlaps the shape."""
    clip = random_clip(rng, held_out=False)
    whole = max(frames, int(rng.choice((9, 17, 33))))
    start = int(rng.integers(0, whole - frames + 1))
    pixels = render_clip(clip, whole, NATIVE_PX, NATIVE_PX)[start : start + frames]
    left, top = _corner(rng, clip, (start + frames / 2) / whole)
    return pixels[:, top : top + CROP_PX, left : left + CROP_PX]


def _corner(rng: np.random.Generator, clip: Clip, time: float) -> tuple[int, int]:
    """A random left and top (px) of a `CROP_PX` square inside the clip, centred within `radius` of the shape.

    `time` is the time in the clip, from 0 to 1.
    """
    x, y, radius = geometry(clip, time)
    centre = np.array([x, y]) + rng.uniform(-1, 1, 2) * radius
    left, top = np.clip(centre * NATIVE_PX - CROP_PX / 2, 0, NATIVE_PX - CROP_PX).astype(int)
    return int(left), int(top)


def to_tensor(clips: Pixels) -> torch.Tensor:
    """8-bit clips (n, frames, height, width, 3) as a tensor (n, 3, frames, height, width) from -1 to 1."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def reconstruction_db(
    vae: diffusers.AutoencoderKLWan, *, seed: int, count: int = 24, frames: int = NATIVE_FRAMES
) -> float:
    """Peak signal-to-noise ratio of the reconstructions of held-out clips, in decibels, from the mean squared
    error over all of them."""
    rng = np.random.default_rng((seed, 98))
    errors = []
    for _ in range(count):
        clip = to_tensor(render_clip(random_clip(rng, held_out=True), frames, NATIVE_PX, NATIVE_PX)[None])
        decoded = vae.decode(vae.encode(clip.to(vae.device)).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - clip.to(vae.device)) / 2).square().mean().item())
    return float(-10 * np.log10(np.mean(errors)))
