"""The tasks of the Wan release: what each renders, and from which checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ourvidz.pipelines.wan.layouts import WanModel

SIZES_480P = ("480*832", "832*480")
SIZES_720P = ("720*1280", "1280*720", *SIZES_480P)
LAYERS_14B = 40
"""How many blocks the larger transformer has; the smaller one has 30."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task. Sizes are WIDTH*HEIGHT in pixels; `frames` is the default and, for a picture, the only count.

    `large`: it needs the checkpoint with 14 billion weights. `model` is the one of Wan's models it runs on,
    `steps` the default.
    """

    sizes: tuple[str, ...]
    frames: int = 81
    large: bool = False
    model: WanModel = "t2v"
    steps: int = 50

    @property
    def makes_a_picture(self) -> bool:
        """Whether it makes one picture instead of a clip."""
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
