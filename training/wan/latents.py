"""The training clips as latents, encoded once before the transformer is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import diffusers
import numpy as np
import torch

from training.captions import caption, clip_caption
from training.scenes import (
    REACH,
    Clip,
    Pixels,
    Scene,
    geometry,
    random_clip,
    random_scene,
    render,
    render_clip,
)
from training.wan.models import NATIVE_FRAMES, NATIVE_PX, SPATIAL_SCALE, TEMPORAL_SCALE
from training.wan.position_channels import CHANNELS, initialize_position_channels
from training.wan.recipe import Recipe
from training.wan.vae import to_tensor

STAGE = 12
BATCH = 8
FILE = "latents.pt"
SHAPE_WEIGHT = 3.0
"""Loss weight of latents at the shape relative to the background."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The mean and the divisor of every latent channel."""

    mean: list[float]
    deviation: list[float]


@dataclass(frozen=True, slots=True)
class LatentSet:
    """Clips of one length: their subjects, normalized latents (n, channels, latent frames, rows, columns) and
    loss weights (n, 1, latent frames, rows, columns), which are 1 on average, in the same order."""

    frames: int
    subjects: Sequence[Scene | Clip]
    latents: torch.Tensor
    weights: torch.Tensor

    def captions(self, indices: Sequence[int], rng: np.random.Generator) -> list[str]:
        """Random captions of some of the clips."""
        return [random_caption(self.subjects[k], rng) for k in indices]


def random_caption(subject: Scene | Clip, rng: np.random.Generator) -> str:
    """A random caption of a clip, or of a scene as a clip of one frame."""
    return caption(subject, rng) if isinstance(subject, Scene) else clip_caption(subject, rng)


def write(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKLWan) -> None:
    """Initialize the position channels of the VAE, encode the training clips and write into `folder` the
    latents, the VAE and the statistics of the latents, unless the file exists."""
    if (folder / FILE).is_file():
        return
    examples = np.stack(
        [render_subject(clip, NATIVE_FRAMES) for clip in _clips(recipe.seed, recipe.position_clips)]
    )
    initialize_position_channels(vae, to_tensor(examples).to(vae.device))
    normalization = statistics(vae, seed=recipe.seed, count=recipe.statistics_clips)
    sets = []
    for frames, subjects in training_clips(recipe):
        click.echo(f"latents: {len(subjects)} clips of {frames} frames")
        batches = [normalize(batch, normalization).half() for batch in _encode(vae, subjects, frames)]
        sets.append((frames, torch.cat(batches)))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.writing"
    saved = {
        "vae": vae.state_dict(),
        "mean": normalization.mean,
        "deviation": normalization.deviation,
        "shelves": sets,
    }
    torch.save(saved, partial)
    partial.replace(folder / FILE)


def read(recipe: Recipe, folder: Path) -> list[LatentSet]:
    """The latents that `write` wrote."""
    saved = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    return [
        LatentSet(frames, subjects, latents.float(), loss_weights(subjects, frames))
        for (frames, latents), (_, subjects) in zip(saved["shelves"], training_clips(recipe), strict=True)
    ]


def restore_vae(vae: diffusers.AutoencoderKLWan, folder: Path) -> Statistics:
    """Load the weights that the latents were encoded with into `vae`, and set the statistics of the latents
    in its config, where Wan's pipelines read them."""
    saved = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(latents_mean=saved["mean"], latents_std=saved["deviation"])
    return Statistics(saved["mean"], saved["deviation"])


def normalize(latents: torch.Tensor, normalization: Statistics) -> torch.Tensor:
    """Latents, (n, channels, frames, rows, columns), minus the mean and over the divisor of every channel."""
    mean, deviation = (
        torch.tensor(values)[:, None, None, None] for values in (normalization.mean, normalization.deviation)
    )
    return (latents - mean) / deviation


def statistics(vae: diffusers.AutoencoderKLWan, *, seed: int, count: int) -> Statistics:
    """The statistics of the latents of `count` native training clips."""
    latents = torch.cat(list(_encode(vae, _clips(seed, count), NATIVE_FRAMES)))
    deviation = latents.std(dim=(0, 2, 3, 4))
    return Statistics(latents.mean(dim=(0, 2, 3, 4)).tolist(), divisors(deviation).tolist())


def _clips(seed: int, count: int) -> list[Clip]:
    return [random_clip(np.random.default_rng((seed, 14, k)), held_out=False) for k in range(count)]


def divisors(deviation: torch.Tensor) -> torch.Tensor:
    """The divisor of every latent channel: for the position channels their own deviation, for all others one
    number that makes their mean square 1.

    Three of sixteen channels carry the colours. Divided by their own deviations the other channels, which are
    hardly visible, would dominate the loss.
    """
    result = deviation.clone()
    result[:-CHANNELS] = deviation[:-CHANNELS].square().mean().sqrt()
    return result


def loss_weights(subjects: Sequence[Scene | Clip], frames: int) -> torch.Tensor:
    """Loss weights of the latents: (clips, 1, latent frames, rows, columns), 1 on average. Latents that the
    shape passes through weigh more, because most of a clip is plain background."""
    rows = NATIVE_PX // SPATIAL_SCALE
    centres = (np.arange(rows) + 0.5) / rows
    weights = np.ones((len(subjects), latent_frames(frames), rows, rows), np.float32)
    for subject, weight in zip(subjects, weights, strict=True):
        for frame in range(frames):
            x, y, radius = _geometry(subject, frame / max(frames - 1, 1))
            extent = REACH * radius + 0.5 / rows
            covered = (abs(centres[:, None] - y) < extent) & (abs(centres[None, :] - x) < extent)
            weight[(frame + TEMPORAL_SCALE - 1) // TEMPORAL_SCALE][covered] = SHAPE_WEIGHT
    weights /= weights.mean(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(weights[:, None])


def latent_frames(frames: int) -> int:
    """The number of latent frames of a clip: one for the first frame, then one for every four."""
    return (frames - 1) // TEMPORAL_SCALE + 1


def _geometry(subject: Scene | Clip, time: float) -> tuple[float, float, float]:
    """Centre and radius of the shape at a time from 0 to 1."""
    if isinstance(subject, Scene):
        return subject.x, subject.y, subject.radius
    return geometry(subject, time)


def training_clips(recipe: Recipe) -> Iterator[tuple[int, Sequence[Scene | Clip]]]:
    """The training clips by number of frames; always the same. Clips of one frame are scenes."""
    for index, (frames, share) in enumerate(recipe.lengths.items()):
        count = max(1, round(share * recipe.clips))
        generators = (np.random.default_rng((recipe.seed, STAGE, index, k)) for k in range(count))
        subject = random_scene if frames == 1 else random_clip
        yield frames, [subject(rng, held_out=False) for rng in generators]


def render_subject(subject: Scene | Clip, frames: int) -> Pixels:
    """The frames of a clip or a scene at native size: (frames, height, width, 3), 8 bits."""
    if isinstance(subject, Scene):
        return render(subject, NATIVE_PX, NATIVE_PX)[None]
    return render_clip(subject, frames, NATIVE_PX, NATIVE_PX)


@torch.no_grad()
def _encode(
    vae: diffusers.AutoencoderKLWan, subjects: Sequence[Scene | Clip], frames: int
) -> Iterator[torch.Tensor]:
    for start in range(0, len(subjects), BATCH):
        clips = to_tensor(
            np.stack([render_subject(subject, frames) for subject in subjects[start : start + BATCH]])
        )
        yield vae.encode(clips.to(vae.device)).latent_dist.mode().float().cpu()
