"""Which files of a repository are pulled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ourvidz.hub.catalog import Part
from ourvidz.hub.selection import HubFile, select_files


def selected(part: Part, *names: str) -> list[str]:
    """The names that are selected, without the file that every repository needs."""
    files = [HubFile(name, 1, "0" * 40) for name in (*names, "model_index.json")]
    return [file.name for file in select_files(part, files) if file.name != "model_index.json"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("unet/a.fp16.safetensors", "unet/a.safetensors"), ["unet/a.fp16.safetensors"]),
        (
            ("unet/a.safetensors", "vae/a.safetensors", "vae/a.fp16.safetensors"),
            ["unet/a.safetensors", "vae/a.safetensors"],
        ),
        (("unet/a.safetensors", "unet/a.non_ema.safetensors"), ["unet/a.safetensors"]),
        (
            (
                "unet/a.fp16-00001-of-00002.safetensors",
                "unet/a.safetensors.index.fp16.json",
                "unet/a.safetensors.index.json",
                "unet/a-00001-of-00002.safetensors",
            ),
            ["unet/a.fp16-00001-of-00002.safetensors", "unet/a.safetensors.index.fp16.json"],
        ),
        (("unet/a.safetensors", "unet/deep/a.safetensors", "a.safetensors"), ["unet/a.safetensors"]),
        (
            ("unet/a.safetensors", "unet/a.py", "unet/a.msgpack", "unet/a.h5", "unet/a.onnx"),
            ["unet/a.safetensors"],
        ),
    ],
)
def test_one_precision_of_safetensors_is_selected(
    part: Part, names: tuple[str, ...], expected: list[str]
) -> None:
    """The half one where each component has it; no code, no other formats."""
    assert selected(part, *names) == sorted(expected)


def test_tokenizers_and_templates_come_along(part: Part) -> None:
    """Of a language model everything lies in one folder."""
    qwen = replace(part, patterns=("*",), required=("config.json",))
    names = (
        "config.json",
        "merges.txt",
        "vocab.json",
        "chat_template.jinja",
        "a.safetensors",
        "LICENSE",
        "run.py",
    )
    files = [HubFile(name, 1, "0" * 40) for name in (*names, "figures/a.json")]
    assert {file.name for file in select_files(qwen, files)} == {*names} - {"run.py"}
