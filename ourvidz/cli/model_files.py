"""`ourvidz models pull` and `ourvidz models rm`: bring checkpoints to this host, and remove them again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ourvidz.cli.console import print_json, print_note
from ourvidz.cli.libraries import INSTALL
from ourvidz.cli.pull_progress import progress, size_text
from ourvidz.errors import HubError, SettingsError
from ourvidz.hub.catalog import DEFAULT_MODELS, Part, PullableModel, pullable_models
from ourvidz.hub.manifest import read_manifest, unused
from ourvidz.hub.staging import disk_errors, pull_lock, replaced_folder, staging_folder
from ourvidz.settings import Settings, settings

MODEL_NAMES = ("sdxl", "wan", "qwen", "vace", "ip-adapter")
_names = click.argument("names", nargs=-1, type=click.Choice(MODEL_NAMES), metavar="[NAME]...")


@click.command(short_help="Download checkpoints from the hub.")
@_names
@click.option("--update", is_flag=True, help="Also pull what is there, if the revision has moved.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull(names: tuple[str, ...], update: bool, as_json: bool) -> None:
    """Download checkpoints (sdxl, wan, qwen, vace, ip-adapter; default the first three) and verify them.

    Prints the settings that name them, in the form of a .env file; nothing that is named already. An
    interrupted pull continues where it was."""
    current = settings()
    models = pullable_models(current)
    pulled = []
    for name in dict.fromkeys(names or DEFAULT_MODELS):
        model = _pull_model(current, models[name], update=update)
        pulled.append(model)
        # At once: a later checkpoint may fail, and this one is complete.
        for variable, value in model["settings"].items() if not as_json else ():
            click.echo(f'{variable}="{value}"' if " " in value else f"{variable}={value}")
    if as_json:
        print_json({"models": pulled})


@click.command(short_help="Delete pulled checkpoints.")
@_names
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete pulled checkpoints and what interrupted pulls have left. Folders that were not pulled stay, and
    so do those that a worker on this host has loaded."""
    if not names:
        raise click.UsageError(f"name what to delete: {', '.join(MODEL_NAMES)}")
    models = pullable_models(settings())
    parts = [
        replace(part, folder=part.folder.resolve())
        for name in dict.fromkeys(names)
        for part in models[name].parts
    ]
    folders = [folder for part in parts for folder in _removable(part)]
    size = sum(_folder_bytes(folder) for folder in folders)
    if folders and not yes:
        for folder in folders:
            print_note(str(folder))
        click.confirm(f"Delete {size_text(size)}?", abort=True, err=True)
    for part in parts:
        if _removable(part):
            with pull_lock(part.folder, None), unused(part.folder):
                for folder in _removable(part):
                    with disk_errors(folder):
                        shutil.rmtree(folder)
    if as_json:
        print_json({"removed": [str(folder) for folder in folders], "bytes": size})
    elif not folders:
        print_note("nothing of it was pulled")


def _pull_model(current: Settings, model: PullableModel, *, update: bool) -> dict[str, Any]:
    """Pull all parts of a model; the report for `--json`. Raises `SettingsError` on a host without the
    libraries, `HubError`."""
    if find_spec("huggingface_hub") is None:
        raise SettingsError(f"this installation has no huggingface_hub, which pulls: {INSTALL}")
    from ourvidz.hub.client import Hub
    from ourvidz.hub.pull import pull as pull_part

    hub = Hub(current)
    others = [folder for _, folder in pulled_folders(current)]
    parts = []
    for part in model.parts:
        with progress(part.name) as shown:
            result = pull_part(hub, part, shown, update=update, others=others)
        manifest = result.manifest
        licence = manifest.licence or "unknown"
        print_note(
            f"{part.name}: {result.state}: {manifest.repository}@{manifest.commit[:12]},"
            f" {size_text(manifest.size_bytes)}, licence {licence}, in {part.folder}"
        )
        parts.append(
            {
                "name": part.name,
                "state": result.state,
                "repository": manifest.repository,
                "commit": manifest.commit,
                "licence": manifest.licence,
                "folder": str(part.folder),
                "bytes": manifest.size_bytes,
                "downloaded": result.downloaded,
            }
        )
    lines = {} if model.named else {name: str(path) for name, path in model.variables.items()}
    return {"name": model.name, "parts": parts, "settings": lines}


def pulled_folders(current: Settings) -> list[tuple[str, Path]]:
    """Name of the model and folder of all parts that were pulled."""
    parts = [(model.name, part) for model in pullable_models(current).values() for part in model.parts]
    return [(name, part.folder) for name, part in parts if _is_pulled(part.folder)]


def _is_pulled(folder: Path) -> bool:
    try:
        return read_manifest(folder) is not None
    except HubError:
        return True


def _removable(part: Part) -> list[Path]:
    """The folders of a part that may be deleted. Raises `SettingsError` for one that was not pulled."""
    if part.folder.is_dir() and not _is_pulled(part.folder):
        raise SettingsError(f"{part.folder} was not pulled, so it is not deleted: delete it yourself")
    folders = (part.folder, staging_folder(part.folder), replaced_folder(part.folder))
    return [folder for folder in folders if folder.is_dir()]


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
