"""The second stage: training clips as latents, once, so that the transformer's training need not encode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import diffusers
import numpy as np
import torch

from training.captions import caption, clip_caption
from training.wan.models import NATIVE_FRAMES, NATIVE_PX, SHRINK, TIME_SHRINK
from training.wan.places import MARKS, mark_places
from training.wan.recipe import Recipe
from training.wan.vae import to_tensor
from training.world import REACH, Clip, Pixels, Scene, place, random_clip, random_scene, render, render_clip

STAGE = 12
BATCH = 8
FILE = "latents.pt"
SHAPE_COUNTS = 3.0
EXAMPLES = 16
AROUND = 64
"""How many native clips the mean and the deviation of the latents are taken from."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The mean of every latent channel, and what it is divided by."""

    mean: list[float]
    deviation: list[float]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Clips of one length: what they show and, in the same order, their latents, centred and scaled, (n,
    channels, latent frames, rows, columns), and how much each of these counts, (n, 1, latent frames, rows,
    columns), 1 on average."""

    frames: int
    shown: Sequence[Scene | Clip]
    latents: torch.Tensor
    weights: torch.Tensor

    def captions(self, picked: Sequence[int], draw: np.random.Generator) -> list[str]:
        """Freshly worded captions of some of its clips."""
        return [worded(self.shown[k], draw) for k in picked]


def worded(what: Scene | Clip, draw: np.random.Generator) -> str:
    """One wording; a single frame shows no motion and is told as a picture."""
    return caption(what, draw) if isinstance(what, Scene) else clip_caption(what, draw)


def make(recipe: Recipe, folder: Path, vae: diffusers.AutoencoderKLWan) -> None:
    """Mark the places in the latents, encode the training clips and write them into `folder`, with the VAE
    that made them and the statistics that centre them."""
    if (folder / FILE).is_file():
        return
    examples = np.stack([rendered(one, NATIVE_FRAMES) for one in _examples(recipe.seed, EXAMPLES)])
    mark_places(vae, to_tensor(examples).to(vae.device))
    found = statistics(vae, seed=recipe.seed)
    shelves = []
    for frames, shown in training_clips(recipe):
        click.echo(f"latents: {len(shown)} clips of {frames} frames")
        shelves.append(
            (frames, torch.cat([centred(some, found).half() for some in _encoded(vae, shown, frames)]))
        )
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{FILE}.writing"
    kept = {"vae": vae.state_dict(), "mean": found.mean, "deviation": found.deviation, "shelves": shelves}
    torch.save(kept, aside)
    aside.replace(folder / FILE)


def read(recipe: Recipe, folder: Path) -> list[Shelf]:
    """What `make` wrote."""
    kept = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    return [
        Shelf(frames, shown, latents.float(), weights(shown, frames))
        for (frames, latents), (_, shown) in zip(kept["shelves"], training_clips(recipe), strict=True)
    ]


def finish(vae: diffusers.AutoencoderKLWan, folder: Path) -> Statistics:
    """Make `vae` the one that the latents come from, and tell it what they are centred and scaled with: Wan's
    pipelines read it from its config."""
    kept = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    vae.load_state_dict(kept["vae"])
    vae.register_to_config(latents_mean=kept["mean"], latents_std=kept["deviation"])
    return Statistics(kept["mean"], kept["deviation"])


def centred(latents: torch.Tensor, found: Statistics) -> torch.Tensor:
    """(n, channels, …) with mean 0 in every channel and deviation 1 over all."""
    mean, deviation = (torch.tensor(one)[:, None, None, None] for one in (found.mean, found.deviation))
    return (latents - mean) / deviation


def statistics(vae: diffusers.AutoencoderKLWan, *, seed: int) -> Statistics:
    """Of native clips."""
    latents = torch.cat(list(_encoded(vae, _examples(seed, AROUND), NATIVE_FRAMES)))
    deviation = latents.std(dim=(0, 2, 3, 4))
    return Statistics(latents.mean(dim=(0, 2, 3, 4)).tolist(), scales(deviation).tolist())


def _examples(seed: int, count: int) -> list[Clip]:
    return [random_clip(np.random.default_rng((seed, 14, k)), held_out=False) for k in range(count)]


def scales(deviation: torch.Tensor) -> torch.Tensor:
    """What the channels are divided by: one number for all that the decoder hears, so that the mean square is
    1, and their own deviation for the marks. Three channels of sixteen carry the colours; by their own
    deviations the others, which carry little that is seen, would make up most of the loss."""
    divided = deviation.clone()
    divided[:-MARKS] = deviation[:-MARKS].square().mean().sqrt()
    return divided


def weights(shown: Sequence[Scene | Clip], frames: int) -> torch.Tensor:
    """How much every latent counts: those that the shape passes through more, for most of a clip is plain
    background. (clips, 1, latent frames, rows, columns), 1 on average."""
    rows = NATIVE_PX // SHRINK
    at = (np.arange(rows) + 0.5) / rows
    counts = np.ones((len(shown), latent_frames(frames), rows, rows), np.float32)
    for clip, count in zip(shown, counts, strict=True):
        for frame in range(frames):
            x, y, radius = _place(clip, frame / max(frames - 1, 1))
            reach = REACH * radius + 0.5 / rows
            there = (abs(at[:, None] - y) < reach) & (abs(at[None, :] - x) < reach)
            count[(frame + TIME_SHRINK - 1) // TIME_SHRINK][there] = SHAPE_COUNTS
    counts /= counts.mean(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(counts[:, None])


def latent_frames(frames: int) -> int:
    """The first frame is a latent of its own, then every four."""
    return (frames - 1) // TIME_SHRINK + 1


def _place(what: Scene | Clip, at: float) -> tuple[float, float, float]:
    return (what.x, what.y, what.radius) if isinstance(what, Scene) else place(what, at)


def training_clips(recipe: Recipe) -> Iterator[tuple[int, Sequence[Scene | Clip]]]:
    """The training clips of every length, the same on every call."""
    for index, (frames, share) in enumerate(recipe.lengths.items()):
        count = max(1, round(share * recipe.clips))
        draws = (np.random.default_rng((recipe.seed, STAGE, index, k)) for k in range(count))
        drawn = random_scene if frames == 1 else random_clip
        yield frames, [drawn(draw, held_out=False) for draw in draws]


def rendered(what: Scene | Clip, frames: int) -> Pixels:
    """(frames, height, width, 3) in 8 bits, native size."""
    if isinstance(what, Scene):
        return render(what, NATIVE_PX, NATIVE_PX)[None]
    return render_clip(what, frames, NATIVE_PX, NATIVE_PX)


@torch.no_grad()
def _encoded(
    vae: diffusers.AutoencoderKLWan, shown: Sequence[Scene | Clip], frames: int
) -> Iterator[torch.Tensor]:
    for start in range(0, len(shown), BATCH):
        clips = to_tensor(np.stack([rendered(one, frames) for one in shown[start : start + BATCH]]))
        yield vae.encode(clips.to(vae.device)).latent_dist.mode().float().cpu()
