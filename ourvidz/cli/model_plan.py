"""`ourvidz models plan`: what checkpoints need of disk and GPU, before anything is downloaded or loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import click

from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.cli.model_files import MODEL_NAMES
from ourvidz.cli.nvidia import DriverError, query_gpus, select_gpu
from ourvidz.cli.pull_progress import size_text
from ourvidz.hub.catalog import DEFAULT_MODELS, GB, PullableModel, pullable_models
from ourvidz.hub.inventory import PlannedPart, plan_part, weight_files
from ourvidz.hub.staging import MIN_FREE_BYTES, free_bytes
from ourvidz.hub.weight_files import count_weights
from ourvidz.settings import Settings, settings
from ourvidz.settings.memory import EMULATED_GPU
from ourvidz.vram.footprints import Footprints
from ourvidz.vram.plan import (
    JOBS,
    OVERHEAD_MIB,
    TEXT_ENCODER_MIB,
    WEIGHTS_MIB,
    Demand,
    fallback,
    fitting_together,
    with_learned,
)

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to answer; then the sizes are documented ones."""
_MIB = 1 << 20
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?) *(?P<unit>GiB|GB|G)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Card:
    """The GPU that is planned for: its memory, and what of it the workers may use (MiB)."""

    label: str
    total_mib: int
    budget_mib: int


def _gpu_size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """MiB of a size such as `48GiB`; without a unit, or as G, GiB are meant."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None or not float(match["number"]):
        raise click.BadParameter("must be a size such as 48GiB or 80GB")
    unit = GB if (match["unit"] or "").lower() == "gb" else 1 << 30
    return int(float(match["number"]) * unit / _MIB)


@click.command(short_help="Show what checkpoints need of disk and GPU.")
@click.argument("names", nargs=-1, type=click.Choice(MODEL_NAMES), metavar="[NAME]...")
@click.option("--gpu", "gpu_mib", callback=_gpu_size, help="Plan for a GPU of this size, such as 48GiB.")
@click.option("--offline", is_flag=True, help="Ask no hub: documented sizes of what is not here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(names: tuple[str, ...], gpu_mib: int | None, offline: bool, as_json: bool) -> None:
    """Show what checkpoints (sdxl, wan, qwen, vace, ip-adapter; default the first three and those that are
    set) need of disk and GPU, and what of it is here. Exit status 1 if the disk or the GPU is too small."""
    current = settings()
    models = _chosen(current, names)
    parts = _plan_parts(models, current, offline=offline)
    disks = _disks(parts)
    card, no_card = _card(current, gpu_mib)
    demands = _demands(current, models, parts)
    gpu = _describe_gpu(card, demands) if card else None
    if as_json:
        print_json({"models": [_describe(part) for part in parts], "disks": disks, "gpu": gpu})
    else:
        _print(parts, disks, gpu, no_card)
    too_small = [job for job in (gpu["jobs"] if gpu else ()) if job["fallback"] == "does not fit"]
    if too_small or not all(disk["fits"] for disk in disks):
        raise click.exceptions.Exit(1)


def _chosen(current: Settings, names: Sequence[str]) -> list[PullableModel]:
    """The models that are planned."""
    models = pullable_models(current)
    extras = {"vace": current.wan_vace_model, "ip-adapter": current.ip_adapter}
    selected = names or (*DEFAULT_MODELS, *(name for name, path in extras.items() if path))
    return [models[name] for name in dict.fromkeys(selected)]


def _plan_parts(models: Sequence[PullableModel], current: Settings, *, offline: bool) -> list[PlannedPart]:
    """The plan of every part; a hub that does not answer is asked once."""
    hub = None
    if not offline and find_spec("huggingface_hub") is not None:
        from ourvidz.hub.client import Hub

        hub = Hub(current, tries=1, timeout_s=HUB_TIMEOUT_S)
    planned = []
    for part in (part for model in models for part in model.parts):
        planned.append(plan_part(part, hub))
        if "no connection" in (planned[-1].problem or ""):
            hub = None
    return planned


def _disks(parts: Sequence[PlannedPart]) -> list[dict[str, Any]]:
    """For each disk what is to be downloaded to it, and its free space."""
    folders: dict[int, list[PlannedPart]] = defaultdict(list)
    for planned in parts:
        folder = planned.part.folder
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        folders[existing.stat().st_dev].append(planned)
    disks = []
    for group in folders.values():
        needed = sum(planned.missing_bytes for planned in group)
        free = free_bytes(group[0].part.folder)
        fits = not needed or needed + MIN_FREE_BYTES <= free
        disks.append(
            {"folder": str(group[0].part.folder.parent), "needed": needed, "free": free, "fits": fits}
        )
    return disks


def _card(current: Settings, gpu_mib: int | None) -> tuple[Card | None, str]:
    """The GPU that is planned for, or why there is none."""
    label, total = "planned", gpu_mib
    if total is None and current.emulated_gpu and (match := EMULATED_GPU.fullmatch(current.emulated_gpu)):
        label, total = "emulated", int(float(match["gib"]) * 1024)
    if total is None:
        try:
            gpu = select_gpu(query_gpus() or [], current.gpu)
        except DriverError as error:
            return None, str(error)
        if gpu is None:
            return None, "no GPU is seen here: plan for one with --gpu 48GiB"
        label, total = gpu.name, gpu.total_mib
    limit = total - OVERHEAD_MIB if current.gpu_budget_mib is None else min(current.gpu_budget_mib, total)
    return Card(label, total, max(0, limit)), ""


def _demands(
    current: Settings, models: Sequence[PullableModel], parts: Sequence[PlannedPart]
) -> list[Demand]:
    """What each model takes on the GPU."""
    by_name = {planned.part.name: planned for planned in parts}
    footprints = Footprints(current.state_dir / "footprints.json")
    kinds = {job.kind for jobs in JOBS.values() for job in jobs}
    learned = {kind: mib for kind in kinds if (mib := footprints.learned_mib(kind)) is not None}
    weights = {name: _weights_mib(current, planned) for name, planned in by_name.items()}
    names = {model.name for model in models}
    totals: Mapping[str, int] = {
        "sdxl": weights.get("sdxl", 0) + weights.get("ip-adapter", 0) if "sdxl" in names else 0,
        "wan": weights.get("wan", 0) + weights.get("vace", 0) if "wan" in names else 0,
        "qwen_instruct": 0 if current.qwen_instruct_url else weights.get("qwen instruct", 0),
        "qwen_base": 0 if current.qwen_base_url else weights.get("qwen base", 0),
    }
    encoder_mib = _weights_mib(current, by_name["wan"], only="text_encoder") if totals["wan"] else 0
    return [
        Demand(name, mib, with_learned(JOBS[name], learned), encoder_mib if name == "wan" else 0)
        for name, mib in totals.items()
        if mib
    ]


def _weights_mib(current: Settings, planned: PlannedPart, *, only: str = "") -> int:
    """The weights of a part as they are loaded: from the headers of its files, else the documented ones.
    `only`: those of the component whose files are in this folder."""
    name = planned.part.name.replace(" ", "_")
    if planned.state in ("absent", "partial"):
        return TEXT_ENCODER_MIB if only else WEIGHTS_MIB[name]
    full = {"sdxl": current.sdxl_dtype, "wan": current.wan_dtype}.get(name) == "float32"
    total = 0
    for file in weight_files(planned.part.folder):
        if (name == "vace" and "transformer" not in file.parts) or (only and file.parent.name != only):
            continue
        # Wan's VAE is computed in float32.
        wide = full or (name == "wan" and file.parent.name == "vae")
        total += count_weights(file) * (4 if wide else 2)
    return max(0 if only else 1, round(total / _MIB))


def _describe(planned: PlannedPart) -> dict[str, Any]:
    part = planned.part
    return {
        "name": part.name,
        "repository": part.repository,
        "revision": part.revision,
        "commit": planned.commit,
        "licence": planned.licence,
        "folder": str(part.folder),
        "state": planned.state,
        "files": planned.files,
        "bytes": planned.size_bytes,
        "bytes_from": planned.size_from,
        "here": planned.have_bytes,
        "problem": planned.problem,
    }


def _describe_gpu(card: Card, demands: Sequence[Demand]) -> dict[str, Any]:
    jobs = [
        {
            "model": demand.name,
            "weights_mib": demand.weights_mib,
            "job": job.label,
            "work_mib": job.whole_mib,
            "learned": job.learned,
            "fallback": fallback(demand, job, card.budget_mib),
        }
        for demand in demands
        for job in demand.jobs
    ]
    together = fitting_together(demands, card.budget_mib)
    return {
        "name": card.label,
        "total_mib": card.total_mib,
        "budget_mib": card.budget_mib,
        "jobs": jobs,
        "together": [list(names) for names in together],
    }


def _print(
    parts: Sequence[PlannedPart], disks: Sequence[dict[str, Any]], gpu: dict[str, Any] | None, no_card: str
) -> None:
    """Print the plan for a person."""
    print_table(("checkpoint", "state", "size", "licence"), [_part_row(planned) for planned in parts])
    for disk in disks:
        verdict = "fits" if disk["fits"] else "DOES NOT FIT"
        click.echo(
            f"disk of {disk['folder']}: {size_text(disk['needed'])} to download, {size_text(disk['free'])}"
            f" free: {verdict}"
        )
    if gpu is None:
        click.echo(f"GPU: {no_card}")
    else:
        _print_gpu(gpu)


def _part_row(planned: PlannedPart) -> TableRow:
    part = planned.part
    size = size_text(planned.size_bytes) if planned.size_bytes is not None else "unknown"
    count = "" if planned.files is None else f", {planned.files} files"
    if planned.state in ("partial", "other revision"):
        count += f", {size_text(planned.have_bytes)} here"
    origin = f"{part.repository}@{part.revision}" if planned.state != "own files" else "not pulled"
    problem = (f"problem: {planned.problem}",) if planned.problem else ()
    return TableRow(
        (part.name, planned.state, f"{size} ({planned.size_from}{count})", planned.licence or "–"),
        (origin, str(part.folder), *problem),
    )


def _print_gpu(gpu: dict[str, Any]) -> None:
    """Print what fits on the GPU, alone and together."""
    click.echo(
        f"GPU {gpu['name']}: {gpu['total_mib']} MiB, of which the workers use up to {gpu['budget_mib']}"
    )
    rows = []
    for job in gpu["jobs"]:
        beside = f"{job['work_mib']} MiB{'' if job['learned'] else ' estimated'}"
        rows.append(
            TableRow((job["model"], f"{job['weights_mib']} MiB", job["job"], beside, job["fallback"]))
        )
    print_table(("model", "weights", "job", "beside them", "fallback"), rows)
    for names in gpu["together"]:
        click.echo(f"stay loaded together: {', '.join(names)}")
    if len(gpu["together"]) != 1:
        click.echo("models that are not together take turns")
