"""The fourth stage: the folder that ships, in the diffusers layout, half precision, with its checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

import diffusers
import torch

CHECKSUMS = "SHA256SUMS"
MIB = 1 << 20


def export(pipeline: diffusers.StableDiffusionXLPipeline, folder: Path) -> None:
    """Write all parts into `folder`. The weights are rounded to half precision in place."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu", torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / CHECKSUMS).write_text(
        "".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in shipped(folder))
    )


def shipped(folder: Path) -> list[Path]:
    """Every file of an export but the list of checksums itself."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; `sha256sum -c SHA256SUMS` checks the same."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size_mib(folder: Path) -> float:
    """How large an export is."""
    return sum(path.stat().st_size for path in shipped(folder)) / MIB
