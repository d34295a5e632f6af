"""Parts of small repositories, and a record of what a pull reports."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ourvidz.hub.catalog import Part, pullable_models
from ourvidz.hub.client import Hub
from ourvidz.settings import load_settings
from tests.hub_server import TinyHub

REPOSITORY = "meadow/tiny"


@dataclass
class Record:
    """What a pull reports; implements `Progress`."""

    notes: list[str] = field(default_factory=list)
    begun: list[tuple[str, int, int]] = field(default_factory=list)
    bytes_received: int = 0

    def note(self, line: str) -> None:
        self.notes.append(line)

    def begin(self, name: str, size: int, done: int) -> None:
        self.begun.append((name, size, done))

    def advance(self, count: int) -> None:
        self.bytes_received += max(0, count)

    def end(self) -> None:
        pass


def safetensors(size: int, seed: int = 1) -> bytes:
    """A complete safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    block = bytes((seed + index * 7) % 251 for index in range(4096))
    data = (block * (size // 4096 + 1))[:size]
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture
def tensors() -> Callable[..., bytes]:
    """Content of a safetensors file by its size."""
    return safetensors


@pytest.fixture
def record() -> Record:
    """What a pull reports."""
    return Record()


@pytest.fixture
def pauses() -> list[float]:
    """The pauses between tries, in seconds; none is made."""
    return []


@pytest.fixture
def make_hub(tiny_hub: TinyHub, pauses: list[float], tmp_path: Path) -> Callable[..., Hub]:
    """A client of the hub, with variables of its settings."""

    def make(**variables: Any) -> Hub:
        settings = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **variables)
        return Hub(settings, wait=pauses.append)

    return make


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """The SDXL part, of a small repository, that goes into a folder of the test."""
    settings = load_settings(
        _env_file=None, OURVIDZ_MODELS_DIR=tmp_path / "models", OURVIDZ_HUB_SDXL=REPOSITORY
    )
    return pullable_models(settings)["sdxl"].parts[0]


@pytest.fixture
def repository(tiny_hub: TinyHub) -> str:
    """A repository with all that one on the hub has: two precisions, other formats, pickles, a card."""
    tiny_hub.add(
        REPOSITORY,
        {
            ".gitattributes": b"*",
            "README.md": b"---\nlicense: the-meadow-licence\n---\n",
            "LICENSE.md": b"a licence",
            "model_index.json": b'{"_class_name": "Tiny"}',
            "scheduler/scheduler_config.json": b"{}",
            "tokenizer/vocab.json": b"{}",
            "tokenizer/merges.txt": b"a b\n",
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": safetensors(6_000_000, 1),
            "unet/diffusion_pytorch_model.fp16.safetensors": safetensors(3_000_000, 2),
            "unet/diffusion_pytorch_model.bin": b"\x80\x04pickle",
            "unet/model.onnx": b"onnx",
            "vae/config.json": b"{}",
            "vae/diffusion_pytorch_model.safetensors": safetensors(2_000, 3),
            "vae/diffusion_pytorch_model.fp16.safetensors": safetensors(1_000, 4),
            "vae_1_0/diffusion_pytorch_model.safetensors": safetensors(100, 5),
            "sd_xl_base_1.0.safetensors": safetensors(100, 6),
        },
    )
    return REPOSITORY
