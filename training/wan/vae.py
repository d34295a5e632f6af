"""The first stage: clips to latents and back."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from ourvidz.pipelines.devices import best_device
from training.runs import Length, Run
from training.wan.models import NATIVE_FRAMES, NATIVE_PX
from training.wan.models import vae as new_vae
from training.wan.recipe import Recipe
from training.world import Clip, Pixels, place, random_clip, render_clip

STAGE = 11
PIECE_PX = 32
PIECES_UNTIL = 0.7
"""Up to this progress it sees squares around the shape: most of a clip is plain and still."""
KL_WEIGHT = 1e-7


def prepare(recipe: Recipe, folder: Path) -> tuple[diffusers.AutoencoderKLWan, Run]:
    """The VAE and its run, as far as an earlier one has come."""
    torch.manual_seed(recipe.seed)
    vae = new_vae(recipe.shape).to(best_device())
    length = Length(recipe.vae_steps, recipe.vae_minutes)
    run = Run(folder, "vae", {"vae": vae}, length=length, peak_lr=recipe.vae_lr, weight_decay=0.0)
    return vae, run


def train(recipe: Recipe, folder: Path) -> diffusers.AutoencoderKLWan:
    """Train to the end of the recipe, or go on with an earlier run; the trained VAE."""
    vae, run = prepare(recipe, folder)

    def loss_of(step: int, progress: float) -> torch.Tensor:
        draw = np.random.default_rng((recipe.seed, STAGE, step))
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        pieces = progress < PIECES_UNTIL
        count = recipe.vae_batch if pieces else max(recipe.vae_batch // 2, 1)
        return loss(vae, to_tensor(batch(draw, count, pieces=pieces)).to(vae.device), noise)

    run.train(loss_of)
    return vae.eval()


def loss(vae: diffusers.AutoencoderKLWan, clips: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Absolute and squared error, and a hint of pressure on the latents to stay near a unit normal."""
    latents = vae.encode(clips).latent_dist
    error = vae.decode(latents.sample(noise)).sample - clips
    kl = latents.kl().sum()
    whole: torch.Tensor = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl / len(clips)
    return whole


def batch(draw: np.random.Generator, count: int, *, pieces: bool) -> Pixels:
    """Training clips, whole or in pieces, all of one length: (count, frames, height, width, 3)."""
    frames = int(draw.choice((5, 9, 13))) if pieces else int(draw.choice((9, 17)))
    return np.stack([_piece(draw, frames) if pieces else _whole(draw, frames) for _ in range(count)])


def _whole(draw: np.random.Generator, frames: int) -> Pixels:
    return render_clip(random_clip(draw, held_out=False), frames, NATIVE_PX, NATIVE_PX)


def _piece(draw: np.random.Generator, frames: int) -> Pixels:
    """Some consecutive frames of a whole clip, and of those a square that the shape passes through."""
    clip = random_clip(draw, held_out=False)
    whole = max(frames, int(draw.choice((9, 17, 33))))
    start = int(draw.integers(0, whole - frames + 1))
    shown = render_clip(clip, whole, NATIVE_PX, NATIVE_PX)[start : start + frames]
    left, top = _corner(draw, clip, (start + frames / 2) / whole)
    return shown[:, top : top + PIECE_PX, left : left + PIECE_PX]


def _corner(draw: np.random.Generator, clip: Clip, at: float) -> tuple[int, int]:
    """Left and top of a square somewhere on the shape."""
    x, y, radius = place(clip, at)
    middle = np.array([x, y]) + draw.uniform(-1, 1, 2) * radius
    left, top = np.clip(middle * NATIVE_PX - PIECE_PX / 2, 0, NATIVE_PX - PIECE_PX).astype(int)
    return int(left), int(top)


def to_tensor(clips: Pixels) -> torch.Tensor:
    """(n, frames, height, width, 3) in 8 bits to (n, 3, frames, height, width) from -1 to 1."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def round_trip_db(
    vae: diffusers.AutoencoderKLWan, *, seed: int, count: int = 24, frames: int = NATIVE_FRAMES
) -> float:
    """Peak signal-to-noise ratio of held-out clips after encoding and decoding, in decibels: of the mean
    squared error over all clips."""
    draw = np.random.default_rng((seed, 98))
    errors = []
    for _ in range(count):
        clip = to_tensor(render_clip(random_clip(draw, held_out=True), frames, NATIVE_PX, NATIVE_PX)[None])
        decoded = vae.decode(vae.encode(clip.to(vae.device)).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(((decoded - clip.to(vae.device)) / 2).square().mean().item())
    return float(-10 * np.log10(np.mean(errors)))
