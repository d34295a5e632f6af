"""Reads the header of a weight file: names, dtypes and shapes of its tensors, and its metadata.

A safetensors file is 8 bytes of header length, a JSON header, and data up to the highest offset in it:
https://huggingface.co/docs/safetensors/index#format. Imports no torch and reads no weights: milliseconds for
a file of any size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ourvidz.errors import ModelLoadError

MAX_HEADER_BYTES = 100 << 20
"""Largest header that the safetensors library accepts."""
_TRAINING_AVERAGES = re.compile(r"(?:model\.)?(?:model_)?ema\.")
_LENGTH_BYTES = 8
_SNIFFED_BYTES = 64
_PICKLE = "a pickle: refused, because it can run code when it is loaded; convert it to safetensors"
_OTHER_FORMATS = {
    b"PK\x03\x04": _PICKLE,
    b"\x80": _PICKLE,
    b"version https://git-lfs": "a Git LFS pointer, not the weights: run git lfs pull",
    b"<": "a web page, not a model: the download got an error page",
    b"{": "a JSON document, not a model: the download got an error message, or it is a config",
    b"GGUF": "a GGUF file, which is not supported: use the safetensors file of the model",
}
"""What a file is that begins with these bytes."""
_PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The dtype, as safetensors names it (`F16`), and the shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a safetensors file by name, and its metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises `ModelLoadError` that says in one line what the file is
    instead, or that it is truncated."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED_BYTES)
            _refuse_other_formats(path, start)
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if len(start) < _LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
                raise ModelLoadError(f"{path} is not a safetensors file.")
            file.seek(_LENGTH_BYTES)
            text = file.read(length)
        size = path.stat().st_size
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from None
    if len(text) < length:
        raise ModelLoadError(f"{path} is truncated: it ends within its header.")
    header, end = _parse(path, text)
    expected = _LENGTH_BYTES + length + end
    if size < expected:
        raise ModelLoadError(f"{path} is truncated: it has {size} bytes instead of {expected}.")
    if size > expected:
        raise ModelLoadError(f"{path} has {size} bytes instead of {expected}: it is damaged.")
    return header


def is_training_average(name: str) -> bool:
    """Whether this tensor is one of the averages (EMA) that some training programs save beside the weights.
    They are not loaded."""
    return _TRAINING_AVERAGES.match(name) is not None


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise `ModelLoadError` for files of formats that are mistaken for safetensors, also by their suffix."""
    if not start:
        raise ModelLoadError(f"{path} is empty.")
    # The header's length comes first, so that a safetensors file can begin with any of these bytes, but its
    # ninth byte is the brace of the JSON.
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and length <= MAX_HEADER_BYTES:
        return
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, description in _OTHER_FORMATS.items():
        if start.startswith(magic) or text.startswith(magic):
            raise ModelLoadError(f"{path} is {description}.")
    if path.suffix in _PICKLE_SUFFIXES:
        raise ModelLoadError(f"{path} is {_PICKLE}.")


def _parse(path: Path, text: bytes) -> tuple[Header, int]:
    """The header of this JSON, and where the data of the last tensor ends (bytes)."""
    try:
        document: dict[str, Any] = json.loads(text)
        metadata = document.pop("__metadata__", None) or {}
        tensors = {
            name: TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in document.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in document.values()), default=0)
        return Header(tensors, {str(key): str(value) for key, value in metadata.items()}), end
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not a safetensors file ({type(error).__name__}).") from None
