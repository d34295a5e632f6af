"""Which files of a repository are pulled: safetensors, configs and tokenizers; never a pickle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ourvidz.errors import HubError
from ourvidz.hub.catalog import CARDS, Part

WEIGHTS = ".safetensors"
CONFIGS = frozenset({".json", ".txt", ".model", ".jinja"})
"""Endings of configs, vocabularies and templates. `.model` is a sentencepiece vocabulary."""
PICKLES = frozenset({".bin", ".pth", ".pt", ".ckpt", ".pkl"})


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository. `sha256` is that of a large file; a small one has only the SHA-1 of its git
    object (`blob_id`)."""

    name: str
    size: int
    blob_id: str
    sha256: str | None = None


def select_files(part: Part, files: Iterable[HubFile]) -> list[HubFile]:
    """The files of a repository that are pulled, by name. Of weights in two precisions the half one.

    Raises `HubError` for a repository without the required files, with weights in pickles only, or with a
    file name that leads outside the folder.
    """
    matching = [file for file in files if any(_matches(file.name, pattern) for pattern in part.patterns)]
    for file in matching:
        _require_safe_name(part, file.name)
    names = {file.name for file in matching}
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in PICKLES)
    missing = [name for name in part.required if name not in names]
    if missing:
        raise HubError(
            f"{part.repository} lacks {', '.join(missing)}, so it is no checkpoint of this layout:"
            f" set {part.variable} to a repository that has it"
        )
    weights = _one_precision([file for file in matching if WEIGHTS in file.name])
    folders = {str(PurePosixPath(file.name).parent) for file in weights}
    unusable = [name for name in pickles if str(PurePosixPath(name).parent) not in folders]
    if unusable or not weights:
        what = f"only a pickle ({unusable[0]})" if unusable else "no weights"
        raise HubError(
            f"{part.repository} has {what} where safetensors are needed, and pickles are not pulled:"
            f" set {part.variable} to a repository with safetensors"
        )
    configs = [file for file in matching if WEIGHTS not in file.name and _is_config(file.name)]
    return sorted(weights + configs, key=lambda file: file.name)


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _is_config(name: str) -> bool:
    return PurePosixPath(name).suffix in CONFIGS or any(_matches(name, card) for card in CARDS)


def _one_precision(weights: Sequence[HubFile]) -> list[HubFile]:
    """Weights and their indexes without a second precision: the loaders take the half one where all
    components have it."""
    half = [file for file in weights if _variant(file.name) == "fp16"]
    full = [file for file in weights if _variant(file.name) is None]
    folders = {PurePosixPath(file.name).parent for file in full}
    if half and folders <= {PurePosixPath(file.name).parent for file in half}:
        return half
    return full or half


def _variant(name: str) -> str | None:
    """`fp16` or `other` for `model.fp16.safetensors`, `model.non_ema.safetensors` and the like, else None.
    Indexes of shards are named `model.safetensors.index.fp16.json` or `model.fp16.safetensors.index.json`."""
    stem, _, ending = PurePosixPath(name).name.partition(WEIGHTS)
    if ".fp16" in stem or ".fp16." in ending:
        return "fp16"
    return "other" if "." in stem else None


def _require_safe_name(part: Part, name: str) -> None:
    path = PurePosixPath(name)
    hidden = any(segment.startswith(".") for segment in path.parts)
    if path.is_absolute() or hidden or "\\" in name or not name.isprintable() or str(path) != name:
        raise HubError(
            f"{part.repository} lists a file {name!r} that is no plain path: do not use this repository"
        )
