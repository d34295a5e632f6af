"""The catalog: the fourteen job types, one row each. Queues, routes, limits and schemas derive from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["sdxl", "wan", "chat"]
Kind = Literal["image", "video", "chat", "admin"]
QualityTier = Literal["fast", "high"]

QUEUES: dict[str, str] = {"sdxl": "sdxl_queue", "wan": "wan_queue", "chat": "chat_queue"}


@dataclass(frozen=True, slots=True)
class JobType:
    """One row of the catalog: a job type with its queue, its defaults and its limits.

    `task` is the name of the Celery task. `steps`, `guidance_scale` and `frames` are the defaults; text types
    have None, image types one frame. `num_images` lists the allowed numbers of images. `enhance` is whether
    the prompt is enhanced by default. `expected_s` is the documented range of generation times in seconds.
    """

    name: str
    family: Family
    kind: Kind
    task: str
    steps: int | None
    guidance_scale: float | None
    frames: int | None
    output: Literal["png", "mp4", "text", "json"]
    num_images: tuple[int, ...]
    enhance: bool
    expected_s: tuple[float, float]

    @property
    def queue(self) -> str:
        """The name of the queue of its family."""
        return QUEUES[self.family]

    @property
    def content_type(self) -> Literal["image", "video", "text", "json"]:
        """The type of its assets."""
        return {"png": "image", "mp4": "video", "text": "text", "json": "json"}[self.output]  # type: ignore[return-value]

    @property
    def quality_tier(self) -> QualityTier | None:
        """The tier that the type's name contains; None for texts and administration."""
        if "_fast" in self.name:
            return "fast"
        return "high" if "_high" in self.name else None

    @property
    def stores_assets(self) -> bool:
        """Whether its jobs store files, and therefore need a user id."""
        return self.output in ("png", "mp4")

    @property
    def time_limit_s(self) -> float:
        """The default time limit in seconds: 120, or four times the expected time if that is longer. Loading
        of models does not count."""
        return max(120.0, 4 * self.expected_s[1])


def _sdxl(name: str, steps: int, guidance: float, expected_s: float) -> JobType:
    return JobType(
        name, "sdxl", "image", "ourvidz.sdxl.generate", steps, guidance, 1, "png", (1, 3, 6), False,
        (expected_s, expected_s),
    )  # fmt: skip


def _wan(
    name: str, steps: int, guidance: float, frames: int, enhance: bool, low_s: float, high_s: float
) -> JobType:
    output: Literal["png", "mp4"] = "mp4" if frames > 1 else "png"
    return JobType(
        name, "wan", "video", "ourvidz.wan.generate", steps, guidance, frames, output, (1,), enhance,
        (low_s, high_s),
    )  # fmt: skip


def _chat(name: str, low_s: float, high_s: float) -> JobType:
    return JobType(
        name, "chat", "chat", "ourvidz.chat.generate", None, None, None, "text", (1,), False, (low_s, high_s)
    )


_ADMIN = JobType(
    "admin_utilities", "chat", "admin", "ourvidz.admin.run", None, None, None, "json", (1,), False, (0, 1)
)

CATALOG: dict[str, JobType] = {
    row.name: row
    for row in (
        _sdxl("sdxl_image_fast", 15, 6.0, 30),
        _sdxl("sdxl_image_high", 25, 7.5, 42),
        _wan("image_fast", 25, 6.5, 1, False, 25, 40),
        _wan("image_high", 50, 7.5, 1, False, 40, 100),
        _wan("video_fast", 25, 6.5, 83, False, 135, 180),
        _wan("video_high", 50, 7.5, 83, False, 180, 240),
        _wan("image7b_fast_enhanced", 25, 6.5, 1, True, 85, 100),
        _wan("image7b_high_enhanced", 50, 7.5, 1, True, 100, 240),
        _wan("video7b_fast_enhanced", 25, 6.5, 83, True, 195, 240),
        _wan("video7b_high_enhanced", 50, 7.5, 83, True, 240, 240),
        _chat("chat_enhance", 1, 3),
        _chat("chat_conversation", 5, 15),
        _chat("chat_unrestricted", 5, 15),
        _ADMIN,
    )
}

ALIASES: dict[str, str] = {
    "wan_video_fast": "video_fast",
    "wan_video_high": "video_high",
    "enhance": "chat_enhance",
    "chat": "chat_conversation",
}

DEFAULT_BUCKET = "workspace-temp"
WRITE_BUCKETS: tuple[str, ...] = (
    DEFAULT_BUCKET,
    *(row.name for row in CATALOG.values() if row.stores_assets),
)
READ_BUCKETS: tuple[str, ...] = ("reference_images", "workspace_assets", "user-library", "workspace-temp")


def lookup(name: str) -> JobType | None:
    """The row of a job type, by its name or an alias; None for an unknown name."""
    return CATALOG.get(ALIASES.get(name, name))


def of_family(family: Family) -> tuple[JobType, ...]:
    """The rows of one family: the types that its workers run."""
    return tuple(row for row in CATALOG.values() if row.family == family)
