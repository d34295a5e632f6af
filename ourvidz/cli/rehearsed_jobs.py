"""The jobs of a rehearsal: one small one of each type, and one that follows an uploaded reference."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from ourvidz.jobs.catalog import CATALOG, JobType

REFERENCE = "reference"
"""Name of the job with a reference."""
SEED = 7
STEPS = 4
SDXL_SIZE = "512x512"
WAN_SIZE = "256*256"
FRAMES = 5
MAX_TOKENS = 32
ENHANCED_TOKENS = 64
REFERENCE_PX = 256
PICTURE_PROMPT = "a red circle on a blue background"
CLIP_PROMPT = "a yellow circle moves slowly over a green meadow"
TEXT_PROMPT = "Describe a lake between two mountains in one sentence."


@dataclass(frozen=True, slots=True)
class RehearsedJob:
    """One job: its name in the table, and its row of the catalog. `reference` is a storage path."""

    name: str
    row: JobType
    reference: str | None = None

    def payload(self, job_id: str, user_id: str) -> dict[str, Any]:
        """What is submitted."""
        return {
            "id": job_id,
            "type": self.row.name,
            "user_id": user_id,
            "prompt": self._prompt(),
            "config": self._config(),
        }

    def _prompt(self) -> str:
        if not self.row.stores_assets:
            return TEXT_PROMPT
        return CLIP_PROMPT if self.row.output == "mp4" else PICTURE_PROMPT

    def _config(self) -> dict[str, Any]:
        if self.row.kind == "admin":
            return {"operation": "status"}
        if self.row.kind == "chat":
            return {"max_tokens": MAX_TOKENS, "seed": SEED}
        config: dict[str, Any] = {"steps": STEPS, "seed": SEED, "num_images": 1}
        config |= {"resolution": SDXL_SIZE} if self.row.family == "sdxl" else {"size": WAN_SIZE}
        if self.row.output == "mp4":
            config["frames"] = FRAMES
        if self.row.enhance:
            config["max_tokens"] = ENHANCED_TOKENS
        return config | ({"image": self.reference} if self.reference else {})


def reference_type(names: tuple[str, ...]) -> JobType | None:
    """The type of the job with a reference: the first of `names` that generates pictures, else clips."""
    rows = [CATALOG[name] for name in names if CATALOG[name].stores_assets]
    return min(rows, key=lambda row: row.output == "mp4", default=None)


def reference_image() -> bytes:
    """The image that is uploaded as a reference, a PNG file: a white circle on green."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (REFERENCE_PX, REFERENCE_PX), "green")
    ImageDraw.Draw(image).ellipse([REFERENCE_PX // 4] * 2 + [REFERENCE_PX * 3 // 4] * 2, fill="white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
