"""The tasks of the Wan release: what each renders, and what this version lacks for it."""

from __future__ import annotations

from dataclasses import dataclass

SIZES_480P = ("480*832", "832*480")
SIZES_720P = ("720*1280", "1280*720", *SIZES_480P)
LAYERS_14B = 40
"""How many blocks the larger transformer has; the smaller one has 30."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task. Sizes are WIDTH*HEIGHT in pixels; `frames` is the default and, for a picture, the only count.

    `large`: it needs the checkpoint with 14 billion weights. `lacking`: what this version does not have.
    """

    sizes: tuple[str, ...]
    frames: int = 81
    large: bool = False
    lacking: str | None = None

    @property
    def makes_a_picture(self) -> bool:
        """Whether it makes one picture instead of a clip."""
        return self.frames == 1


_IMAGE_TO_VIDEO = "a transformer with 36 input channels and an image encoder"

TASKS: dict[str, Task] = {
    "t2v-1.3B": Task((*SIZES_480P, "624*624")),
    "t2v-14B": Task(SIZES_720P, large=True),
    "t2i-14B": Task((*SIZES_720P, "1024*1024"), frames=1, large=True),
    "i2v-14B": Task(SIZES_720P, large=True, lacking=f"an image-to-video pipeline ({_IMAGE_TO_VIDEO})"),
    "flf2v-14B": Task(SIZES_720P, large=True, lacking=f"a first-and-last-frame pipeline ({_IMAGE_TO_VIDEO})"),
    "vace-1.3B": Task(SIZES_480P, lacking="a VACE pipeline (a transformer with VACE blocks)"),
    "vace-14B": Task(SIZES_720P, large=True, lacking="a VACE pipeline (a transformer with VACE blocks)"),
}
