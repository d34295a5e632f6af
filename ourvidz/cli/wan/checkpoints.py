"""The checkpoint that a task of `wan_generate.py` runs on."""

from __future__ import annotations

from pathlib import Path

from ourvidz.cli.wan.options import Options
from ourvidz.cli.wan.tasks import LAYERS_14B, TASKS, Task
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.wan.checkpoint import MODEL_NAMES, find_wan, read_model_info
from ourvidz.settings import Settings

_SETTINGS = {"t2v": "OURVIDZ_WAN_MODEL", "vace": "OURVIDZ_WAN_VACE_MODEL"}
"""The variables that name a checkpoint for a model, where there is one."""


def folder_of(given: Options, task: Task, chosen: Settings) -> Path | None:
    """Where the checkpoint is; None for the tiny one."""
    named = {"t2v": chosen.wan_model, "vace": chosen.wan_vace_model}
    return given.ckpt_dir or named.get(task.model)


def is_tiny(folder: Path) -> bool:
    """Whether a folder is the tiny checkpoint that ships."""
    return folder.resolve() == (PACKAGED / "tiny-wan").resolve()


def find(name: str, folder: Path | None, chosen: Settings) -> Checkpoint:
    """The checkpoint of a task. `ModelLoadError` when there is none, or the task needs another."""
    task = TASKS[name]
    if folder is None:
        if task.large or task.model != "t2v" or chosen.profile == "production":
            raise ModelLoadError(f"--task {name} needs {_described(task)}: give {_how(task)}.")
        return find_wan(None)
    found = find_wan(folder)
    _check(found, name, task)
    return Checkpoint(found.path, "tiny") if is_tiny(folder) else found


def find_vace(given: Options, task: Task, chosen: Settings, *, needed: bool) -> Checkpoint | None:
    """What a worker would follow references with, beside the checkpoint from the settings. With a checkpoint
    of the call's own it may not belong together."""
    if not needed or task.model != "t2v" or given.ckpt_dir is not None or chosen.wan_vace_model is None:
        return None
    return find_wan(chosen.wan_vace_model, expected="vace")


def _check(checkpoint: Checkpoint, name: str, task: Task) -> None:
    """Whether the checkpoint is the model, and has the weights, that the task's name says."""
    found = read_model_info(checkpoint.path)
    if found.model != task.model:
        raise ModelLoadError(
            f"--task {name} needs {_described(task)}; {checkpoint.path} is for {MODEL_NAMES[found.model]}."
        )
    if task.large != (found.layers == LAYERS_14B):
        needed = (
            "14B checkpoint: 40 layers" if task.large else "checkpoint smaller than 14B: fewer than 40 layers"
        )
        raise ModelLoadError(f"--task {name} needs a {needed}; {checkpoint.path} has {found.layers}.")


def _described(task: Task) -> str:
    size = " with 14B weights" if task.large else ""
    return f"a checkpoint for {MODEL_NAMES[task.model]}{size}"


def _how(task: Task) -> str:
    return "--ckpt_dir" if task.model not in _SETTINGS else f"--ckpt_dir, or set {_SETTINGS[task.model]}"
