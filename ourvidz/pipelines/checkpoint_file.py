"""The file of a denoising checkpoint: tensors and a JSON document in one safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save

_DOCUMENT, _CHECKSUM = "document", "sha256"


class UnusableCheckpoint(Exception):
    """A checkpoint that cannot be continued from; the message is the reason."""


def encode(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of contiguous CPU tensors. Its metadata holds the document as JSON, and the SHA-256
    of document and tensors: the format itself has no checksum."""
    text = json.dumps(document)
    metadata = {_DOCUMENT: text, _CHECKSUM: _checksum(text, tensors)}
    return save(dict(tensors), metadata=metadata)


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The document and the tensors of a file. Raises `UnusableCheckpoint` for one that is truncated or was
    changed."""
    try:
        # The library returns the metadata of files on disk only.
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text, tensors = metadata[_DOCUMENT], load(data)
        if _checksum(text, tensors) != metadata[_CHECKSUM]:
            raise UnusableCheckpoint("the checkpoint is damaged")
        return json.loads(text), tensors
    except UnusableCheckpoint:
        raise
    except Exception as error:  # the library raises errors of several classes, some of its own
        raise UnusableCheckpoint("the checkpoint is damaged") from error


def _checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the document and of names, dtypes, shapes and bytes of the tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Through bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
