"""`ourvidz models`: which checkpoints there are, and whether their files are whole. Reads no tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ourvidz.cli.console import emit
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint, find_sdxl
from ourvidz.settings import Settings, settings

HEADER_LIMIT = 100 << 20
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint of this installation. `size_mib` counts the weights on disk."""

    family: str
    name: str
    kind: str
    path: str | None
    size_mib: float
    problem: str | None = None


@click.group(short_help="List and verify the checkpoints.")
def models() -> None:
    """List and verify the checkpoints."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the checkpoints that the workers will load."""
    _present([_describe(settings())], as_json)


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> None:
    """Check that every weight file is whole. Exit status 1 when one is not."""
    row = _describe(settings(), whole=True)
    _present([row], as_json)
    if row.problem:
        raise click.exceptions.Exit(1)


def find(chosen: Settings) -> Checkpoint | None:
    """The SDXL checkpoint of this installation; None for a tiny one that is yet to be built.
    `ModelLoadError` says what is missing."""
    if chosen.sdxl_model is not None:
        return find_sdxl(chosen.sdxl_model, chosen.cache_dir)
    # Building needs torch, and that is the worker's to import.
    shipped = (PACKAGED / "tiny-sdxl" / "model_index.json").is_file()
    return find_sdxl(None, chosen.cache_dir) if shipped else None


def damage(path: Path) -> str | None:
    """What is wrong with one weight or configuration file; None when nothing is.

    A safetensors file is 8 bytes of header length, a JSON header, and data up to the highest offset in it:
    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
            return None
        return _safetensors_damage(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as unreadable:
        return f"{path}: {unreadable}"


def _safetensors_damage(path: Path) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= HEADER_LIMIT:
            return f"{path} is no safetensors file"
        header = json.loads(file.read(length))
    data = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
    expected, found = 8 + length + data, path.stat().st_size
    return None if found == expected else f"{path} has {found} bytes instead of {expected}"


def _describe(chosen: Settings, *, whole: bool = False) -> Row:
    try:
        checkpoint = find(chosen)
    except ModelLoadError as missing:
        return Row("sdxl", "–", "–", str(chosen.sdxl_model), 0.0, missing.message)
    if checkpoint is None:
        return Row("sdxl", "tiny-sdxl", "tiny", None, 0.0)
    files = list(_files(checkpoint))
    problem = next((wrong for file in files if (wrong := damage(file))), None) if whole else None
    size = sum(file.stat().st_size for file in files if file.suffix == ".safetensors") / _MIB
    return Row("sdxl", checkpoint.name, checkpoint.kind, str(checkpoint.path), round(size, 1), problem)


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    if checkpoint.path.is_file():
        yield checkpoint.path
    for folder in (checkpoint.path, checkpoint.config):
        if folder is not None and folder.is_dir():
            yield from sorted(folder.rglob("*.safetensors"))
            yield from sorted(folder.rglob("*.json"))


def _present(rows: list[Row], as_json: bool) -> None:
    if as_json:
        emit([asdict(row) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "checkpoint", "kind", "MiB", "where", "problem")
    for row in rows:
        shown: list[Any] = [row.family, row.name, row.kind, f"{row.size_mib:g}"]
        table.add_row(*shown, row.path or "built on first use", row.problem or "–")
    Console().print(table)
