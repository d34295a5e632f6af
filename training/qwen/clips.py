"""Evaluation of enhanced prompts by the clips that tiny-wan generates from them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ourvidz.pipelines.checkpoints import PACKAGED
from training.captions import clip_caption
from training.qwen.evaluate import STAGE, TEMPERATURE, complete_prompts
from training.qwen.generation import TextGenerator
from training.qwen.sampling import articled, pick
from training.scenes import Clip, random_clip
from training.wan.evaluate import open_pipeline, score

WAN = PACKAGED / "tiny-wan"

MOTION_SENTENCES: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "moves left", "moves to the left", "is moving left", "slides left"),
    "right": ("moving right", "moves right", "moves to the right", "is moving right", "slides right"),
    "up": ("moving up", "moves up", "moves upwards", "is moving up", "rises"),
    "down": ("moving down", "moves down", "moves downwards", "is moving down", "falls"),
    "growing": ("growing", "grows", "is growing", "gets bigger", "grows larger"),
    "shrinking": ("shrinking", "shrinks", "is shrinking", "gets smaller", "shrinks away"),
}
"""Motions in the inflections that callers write; tiny-wan's captions have only the first of each."""


def clip_prompts(count: int, seed: int) -> list[tuple[Clip, str]]:
    """Held-out clips with prompts: in turn a caption of tiny-wan and a sentence with an inflected verb."""
    generators = [np.random.default_rng((seed, STAGE, 9, k)) for k in range(count)]
    clips = [random_clip(rng, held_out=True) for rng in generators]
    return [
        (clip, _sentence_with_inflected_verb(clip, rng) if k % 2 else clip_caption(clip, rng, complete=True))
        for k, (clip, rng) in enumerate(zip(clips, generators, strict=True))
    ]


def _sentence_with_inflected_verb(clip: Clip, rng: np.random.Generator) -> str:
    """A sentence about the clip with a random wording of its motion from `MOTION_SENTENCES`."""
    motion = pick(rng, MOTION_SENTENCES[clip.motion])
    return articled(f"a {clip.colour} {clip.shape} {motion} on a {clip.background} background")


def evaluate_clips(folder: Path, *, count: int, seed: int, wan: Path = WAN, **options: Any) -> dict[str, Any]:
    """Scores of `count` clips of tiny-wan from plain prompts and from the same prompts enhanced.

    `folder` is an export of tiny-qwen. Prompts are enhanced as the worker does: by the base model, with the
    default instruction and the default sampling. `options` are fields of the video jobs.
    """
    torch.manual_seed(seed)
    prompts = clip_prompts(count, seed)
    model = TextGenerator(folder / "base")
    enhanced = complete_prompts(model, [text for _, text in prompts], temperature=TEMPERATURE)
    pipeline = open_pipeline(wan)
    pairs = [(clip, text.strip()) for (clip, _), text in zip(prompts, enhanced, strict=True)]
    return {
        "clips from plain prompts": asdict(score(pipeline, prompts, **options)),
        "clips from enhanced prompts": asdict(score(pipeline, pairs, **options)),
    }
