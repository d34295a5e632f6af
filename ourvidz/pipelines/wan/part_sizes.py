"""The sizes of the parts of a Wan checkpoint before it is loaded, from the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.pipelines.wan.components import PartName

PART_FILES: Mapping[PartName, tuple[str, ...]] = {
    "text_encoder": ("text_encoder", "t5"),
    "vae": ("vae", "clip", "image_encoder"),
}
"""Words in the names of the files of a part, in either layout; all other files are of the transformer."""


def part_sizes(checkpoint: Checkpoint, vace: Checkpoint | None, dtype: torch.dtype) -> dict[PartName, float]:
    """The size of each part once it is loaded (MiB). The transformer is that of both checkpoints."""
    transformers = [each for each in (checkpoint, vace) if each is not None]
    return {
        "text_encoder": checkpoint_mib(checkpoint, dtype, only=PART_FILES["text_encoder"]),
        "transformer": sum(_transformer_mib(each, dtype) for each in transformers),
        "vae": checkpoint_mib(checkpoint, torch.float32, only=PART_FILES["vae"]),
    }


def _transformer_mib(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    others = [word for words in PART_FILES.values() for word in words]
    return max(1, checkpoint_mib(checkpoint, dtype) - checkpoint_mib(checkpoint, dtype, only=others))
