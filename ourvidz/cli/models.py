"""`ourvidz models`: lists the checkpoints of this installation and verifies their files. Loads no tensors.

The commands that bring and delete checkpoints are in `model_files`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import click

from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.cli.model_files import pull, pulled_folders, rm
from ourvidz.cli.model_plan import plan
from ourvidz.errors import HubError, ModelLoadError
from ourvidz.hub.manifest import MANIFEST, changed_files, read_manifest
from ourvidz.hub.weight_files import find_damage
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.checksums import CHECKSUMS
from ourvidz.pipelines.checksums import verify as verify_checksums
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.settings import Settings, settings

MODEL_CARD = "README.md"
_MIB = 1 << 20
_WEIGHTS = (".safetensors", ".pth")
FindCheckpoint = Callable[[], Checkpoint]
"""Finds one checkpoint. Raises `ModelLoadError` when it is missing or incomplete."""

_LICENCE = re.compile(r"^license(?:_name)?: *(\S.*?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint of this installation, or why it is unusable (`problem`).

    size_mib: size of the weight files on disk. licence: the licence that the model card names. card: path of
    the model card. checksums: whether there is a SHA256SUMS file, or a manifest of a pull.
    """

    family: str
    name: str
    kind: str
    path: str | None
    size_mib: float = 0.0
    licence: str | None = None
    card: str | None = None
    checksums: bool = False
    problem: str | None = None


@click.group(short_help="Pull, list, verify and delete checkpoints.")
def models() -> None:
    """Pull, list, verify and delete checkpoints."""


models.add_command(plan)
models.add_command(pull)
models.add_command(rm)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the checkpoints of this installation."""
    _print_rows(list_checkpoints(settings()), as_json)


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> None:
    """Check the files of every checkpoint: against its checksums or those of its pull, where there are any,
    and for truncated weight files. Exit status 1 when a check fails."""
    rows = list_checkpoints(settings(), verify_files=True)
    _print_rows(rows, as_json)
    if any(row.problem for row in rows):
        raise click.exceptions.Exit(1)


def list_checkpoints(
    settings: Settings, *, verify_files: bool = False, packaged: Path = PACKAGED
) -> list[Row]:
    """One row for every checkpoint that the workers would load. `verify_files` reads all files for damage;
    `packaged` is the folder of the tiny checkpoints."""
    rows = [
        _row(family, path, find, verify_files=verify_files)
        for family, path, find in _checkpoints(settings, packaged)
    ]
    named = {Path(row.path).resolve() for row in rows if row.path}
    return rows + [
        row
        for row in _pulled_rows(settings, verify_files=verify_files)
        if Path(str(row.path)).resolve() not in named
    ]


def _checkpoints(settings: Settings, packaged: Path) -> Iterator[tuple[str, Path | None, FindCheckpoint]]:
    """(family, path in the settings, finder) of every checkpoint. A path of None means the packaged tiny one,
    which the production profile never loads."""
    tiny = settings.profile == "tiny"
    if settings.sdxl_model or tiny:
        yield (
            "sdxl",
            settings.sdxl_model,
            partial(
                find_sdxl,
                settings.sdxl_model,
                config=settings.sdxl_config,
                vae=settings.sdxl_vae,
                packaged=packaged,
            ),
        )
    if settings.wan_model or tiny:
        yield "wan", settings.wan_model, lambda: find_wan(settings.wan_model, packaged=packaged)
    if settings.wan_vace_model:
        yield "wan", settings.wan_vace_model, lambda: find_wan(settings.wan_vace_model, expected="vace")
    if settings.qwen_model or tiny:
        for variant in get_args(QwenVariant):
            yield (
                "qwen",
                settings.qwen_model,
                partial(find_qwen, settings.qwen_model, variant, packaged=packaged),
            )


def _row(family: str, path: Path | None, find: FindCheckpoint, *, verify_files: bool) -> Row:
    """The row of one checkpoint; `problem` has the error of a missing or damaged one."""
    try:
        checkpoint = find()
    except ModelLoadError as error:
        return Row(family, "–", "–", str(path) if path else None, problem=error.message)
    files = list(_files(checkpoint))
    card = checkpoint.root / MODEL_CARD
    return Row(
        family,
        checkpoint.name,
        checkpoint.kind,
        str(checkpoint.path),
        size_mib=round(sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS) / _MIB, 1),
        licence=_licence(card),
        card=str(card) if card.is_file() else None,
        checksums=(checkpoint.root / CHECKSUMS).is_file() or (checkpoint.path / MANIFEST).is_file(),
        problem=_find_problem(checkpoint, files) if verify_files else None,
    )


def _pulled_rows(settings: Settings, *, verify_files: bool) -> Iterator[Row]:
    """A row for every folder that was pulled, also where no setting names it yet."""
    for name, folder in pulled_folders(settings):
        try:
            manifest = read_manifest(folder)
        except HubError as error:
            yield Row(name, folder.name, "pulled", str(folder), problem=error.message)
            continue
        if manifest is None:
            continue
        yield Row(
            name,
            folder.name,
            "pulled",
            str(folder),
            size_mib=round(manifest.size_bytes / _MIB, 1),
            licence=manifest.licence,
            card=str(folder / MODEL_CARD) if (folder / MODEL_CARD).is_file() else None,
            checksums=True,
            problem=next(changed_files(folder, manifest, contents=True), None) if verify_files else None,
        )


def _find_problem(checkpoint: Checkpoint, files: list[Path]) -> str | None:
    """The first file that fails its checksum, as a worker would report it; else the first damaged file."""
    try:
        verify_checksums(checkpoint.root)
        manifest = read_manifest(checkpoint.path)
    except (ModelLoadError, HubError) as error:
        return error.message
    if manifest and (change := next(changed_files(checkpoint.path, manifest, contents=True), None)):
        return change
    return next((damage for file in files if (damage := find_damage(file))), None)


def _licence(card: Path) -> str | None:
    """The licence in the front matter of a model card: `license_name` where `license` is `other`.
    https://huggingface.co/docs/hub/model-cards#specifying-a-license"""
    if not card.is_file():
        return None
    parts = card.read_text(errors="replace").split("---", maxsplit=2)
    names = _LICENCE.findall(parts[1]) if len(parts) == 3 and not parts[0].strip() else []
    return next((name for name in names if name != "other"), None)


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    """The weight and JSON files of a checkpoint."""
    for folder in (checkpoint.path, checkpoint.config, checkpoint.vae):
        if folder is not None and folder.is_file():
            yield folder
        elif folder is not None:
            for pattern in ("*.safetensors", "*.pth", "*.json"):
                yield from sorted(folder.rglob(pattern))


def _print_rows(rows: list[Row], as_json: bool) -> None:
    """Print the rows as a table, or as JSON."""
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    header = ("family", "checkpoint", "kind", "MiB", "licence")
    table = [
        TableRow(
            (row.family, row.name, row.kind, f"{row.size_mib:g}", row.licence or "–"),
            (row.path or "–", *([f"problem: {row.problem}"] if row.problem else ())),
        )
        for row in rows
    ]
    print_table(header, table)
