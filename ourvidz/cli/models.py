"""`ourvidz models`: which checkpoints there are, and whether their files are whole. Reads no tensor."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import click

from ourvidz.cli.console import print_json
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import (
    PACKAGED,
    Checkpoint,
    QwenVariant,
    find_qwen,
    find_sdxl,
    find_wan,
)
from ourvidz.pipelines.checksums import CHECKSUMS
from ourvidz.pipelines.checksums import verify as verify_checksums
from ourvidz.settings import Settings, settings

HEADER_LIMIT = 100 << 20
CARD = "README.md"
_MIB = 1 << 20
_WEIGHTS = (".safetensors", ".pth")
Find = Callable[[], Checkpoint]

_LICENCE = re.compile(r"^license(?:_name)?: *(\S.*?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint of this installation. `size_mib` counts the weights on disk; `card` is its model card,
    `licence` what that says, `checksums` whether it has a list of them."""

    family: str
    name: str
    kind: str
    path: str | None
    size_mib: float = 0.0
    licence: str | None = None
    card: str | None = None
    checksums: bool = False
    problem: str | None = None


@click.group(short_help="List and verify the checkpoints.")
def models() -> None:
    """List and verify the checkpoints."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the checkpoints of this installation."""
    _present(describe(settings()), as_json)


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> None:
    """Check every file against its checksums, where there are any, and that every weight file is whole. Exit
    status 1 when one is not."""
    rows = describe(settings(), whole=True)
    _present(rows, as_json)
    if any(row.problem for row in rows):
        raise click.exceptions.Exit(1)


def describe(chosen: Settings, *, whole: bool = False, packaged: Path = PACKAGED) -> list[Row]:
    """A row for every checkpoint that is there or ought to be; `whole` reads the files for damage."""
    return [_row(family, given, finder, whole=whole) for family, given, finder in _finders(chosen, packaged)]


def _finders(chosen: Settings, packaged: Path) -> Iterator[tuple[str, Path | None, Find]]:
    """Family, the path in the settings, and how to find it. Where there is none, there is no row. The
    production profile loads nothing that ships."""
    tiny = chosen.profile == "tiny"
    if chosen.sdxl_model or tiny:
        yield "sdxl", chosen.sdxl_model, lambda: find_sdxl(chosen.sdxl_model, packaged=packaged)
    if chosen.wan_model or tiny:
        yield "wan", chosen.wan_model, lambda: find_wan(chosen.wan_model, packaged=packaged)
    if chosen.wan_vace_model:
        yield "wan", chosen.wan_vace_model, lambda: find_wan(chosen.wan_vace_model, expected="vace")
    if chosen.qwen_model or tiny:
        yield from (
            ("qwen", chosen.qwen_model, _qwen(chosen, one, packaged)) for one in get_args(QwenVariant)
        )


def _qwen(chosen: Settings, variant: QwenVariant, packaged: Path) -> Find:
    return lambda: find_qwen(chosen.qwen_model, variant, packaged=packaged)


def damage(path: Path) -> str | None:
    """What is wrong with one weight or configuration file; None when nothing is.

    A safetensors file is 8 bytes of header length, a JSON header, and data up to the highest offset in it:
    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
            return None
        return _archive_damage(path) if path.suffix == ".pth" else _safetensors_damage(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as unreadable:
        return f"{path}: {unreadable}"


def _archive_damage(path: Path) -> str | None:
    """Torch writes archives, whose directory is at the end; what it wrote long ago cannot be told."""
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    return f"{path} is cut off" if archive and not zipfile.is_zipfile(path) else None


def _safetensors_damage(path: Path) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= HEADER_LIMIT:
            return f"{path} is no safetensors file"
        header = json.loads(file.read(length))
    data = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
    expected, found = 8 + length + data, path.stat().st_size
    return None if found == expected else f"{path} has {found} bytes instead of {expected}"


def _row(family: str, given: Path | None, finder: Find, *, whole: bool) -> Row:
    try:
        checkpoint = finder()
    except ModelLoadError as missing:
        return Row(family, "–", "–", str(given) if given else None, problem=missing.message)
    files = list(_files(checkpoint))
    card = checkpoint.root / CARD
    return Row(
        family,
        checkpoint.name,
        checkpoint.kind,
        str(checkpoint.path),
        size_mib=round(sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS) / _MIB, 1),
        licence=_licence(card),
        card=str(card) if card.is_file() else None,
        checksums=(checkpoint.root / CHECKSUMS).is_file(),
        problem=_problem(checkpoint, files) if whole else None,
    )


def _problem(checkpoint: Checkpoint, files: list[Path]) -> str | None:
    """What a worker would say about the checksums; else the first damaged file."""
    try:
        verify_checksums(checkpoint.root)
    except ModelLoadError as changed:
        return changed.message
    return next((wrong for file in files if (wrong := damage(file))), None)


def _licence(card: Path) -> str | None:
    """The licence in the front matter of a model card; its name where it is none of the well-known ones.
    https://huggingface.co/docs/hub/model-cards#specifying-a-license"""
    if not card.is_file():
        return None
    matter = card.read_text(errors="replace").split("---", maxsplit=2)
    found = _LICENCE.findall(matter[1]) if len(matter) == 3 and not matter[0].strip() else []
    return next((name for name in found if name != "other"), None)


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    if checkpoint.path.is_file():
        yield checkpoint.path
    for folder in (checkpoint.path, checkpoint.config):
        if folder is not None and folder.is_dir():
            yield from sorted(folder.rglob("*.safetensors"))
            yield from sorted(folder.rglob("*.pth"))
            yield from sorted(folder.rglob("*.json"))


def _present(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "checkpoint", "kind", "MiB", "licence", "where", "problem")
    for row in rows:
        where = row.path or "–"
        table.add_row(
            row.family, row.name, row.kind, f"{row.size_mib:g}", row.licence or "–", where, row.problem or "–"
        )
    Console().print(table)
