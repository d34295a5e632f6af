"""The tasks of the Wan release: sizes, default frames and steps, and the checkpoint each one needs."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.pipelines.wan.checkpoint import WanModel

SIZES_480P = ("480*832", "832*480")
SIZES_720P = ("720*1280", "1280*720", *SIZES_480P)
LAYERS_14B = 40
"""Transformer blocks of the 14B checkpoints; the 1.3B ones have 30."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the release.

    sizes: the allowed ones, WIDTH*HEIGHT in pixels. frames: the default; an image task allows only its 1.
    large: needs a 14B checkpoint. model: the Wan model it runs on. steps: default number of denoising steps.
    """

    sizes: tuple[str, ...]
    frames: int = 81
    large: bool = False
    model: WanModel = "t2v"
    steps: int = 50

    @property
    def is_image(self) -> bool:
        """Whether the task makes one image instead of a clip."""
        return self.frames == 1


TASKS: dict[str, Task] = {
    "t2v-1.3B": Task((*SIZES_480P, "624*624")),
    "t2v-14B": Task(SIZES_720P, large=True),
    "t2i-14B": Task((*SIZES_720P, "1024*1024"), frames=1, large=True),
    "i2v-14B": Task(SIZES_720P, large=True, model="i2v", steps=40),
    "flf2v-14B": Task(SIZES_720P, large=True, model="flf2v"),
    "vace-1.3B": Task(SIZES_480P, model="vace"),
    "vace-14B": Task(SIZES_720P, large=True, model="vace"),
}
