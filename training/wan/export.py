"""Export in the diffusers layout in half precision, with checksums."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

from training.export import write_checksums


def export(pipeline: diffusers.WanPipeline, folder: Path) -> None:
    """Write all components into `folder`; the weights are rounded to half precision in place."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu", torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_checksums(folder)
