"""One Wan job under way: what is finished of it stays so when the rest is tried again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL.Image import Image

from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.wan.reference_frames import Plan


@dataclass(slots=True)
class Work:
    """A job as it is rendered, and its finished latents and frames."""

    job: VideoJob
    plan: Plan
    references: ReferenceImages
    hearing: ProgressReporter
    source: SourceVideo | None = None
    latents: torch.Tensor | None = None
    frames: list[Image] = field(default_factory=list)
