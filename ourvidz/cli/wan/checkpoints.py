"""The checkpoint of a `wan_generate.py` task: where it is, and whether it fits the task."""

from __future__ import annotations

from pathlib import Path

from ourvidz.cli.wan.options import Options
from ourvidz.cli.wan.tasks import LAYERS_14B, TASKS, Task
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint
from ourvidz.pipelines.wan.checkpoint import MODEL_NAMES, find_wan, read_model_info
from ourvidz.settings import Settings

_VARIABLES = {"t2v": "OURVIDZ_WAN_MODEL", "vace": "OURVIDZ_WAN_VACE_MODEL"}
"""The settings that name a checkpoint, by Wan model. The other models have none."""


def checkpoint_folder(options: Options, task: Task, settings: Settings) -> Path | None:
    """The folder of `--ckpt_dir`, else that of the settings; None for the packaged tiny checkpoint."""
    configured = {"t2v": settings.wan_model, "vace": settings.wan_vace_model}
    return options.ckpt_dir or configured.get(task.model)


def is_tiny(folder: Path) -> bool:
    """Whether a folder is that of the packaged tiny checkpoint."""
    return folder.resolve() == (PACKAGED / "tiny-wan").resolve()


def find_checkpoint(task_name: str, folder: Path | None, settings: Settings) -> Checkpoint:
    """Find the checkpoint of a task in `folder`; None means the packaged tiny one.

    Raises `ModelLoadError` when it is missing, incomplete, of another model, or of another size.
    """
    task = TASKS[task_name]
    if folder is None:
        if task.large or task.model != "t2v" or settings.profile == "production":
            needed, source = _describe_needed(task), _describe_source(task)
            raise ModelLoadError(f"--task {task_name} needs {needed}: give {source}.")
        return find_wan(None)
    checkpoint = find_wan(folder)
    _check_fits(checkpoint, task_name, task)
    return Checkpoint(checkpoint.path, "tiny") if is_tiny(folder) else checkpoint


def find_reference_checkpoint(options: Options, task: Task, settings: Settings) -> Checkpoint | None:
    """Find the VACE checkpoint with which a text-to-video task follows reference images, as the worker does.

    None if the settings name none, and with `--ckpt_dir`: the two checkpoints may not belong together.
    """
    if task.model != "t2v" or options.ckpt_dir is not None or settings.wan_vace_model is None:
        return None
    return find_wan(settings.wan_vace_model, expected="vace")


def _check_fits(checkpoint: Checkpoint, task_name: str, task: Task) -> None:
    """Raise `ModelLoadError` unless the checkpoint has the model and the size of the task."""
    info = read_model_info(checkpoint.path)
    if info.model != task.model:
        name = MODEL_NAMES[info.model]
        raise ModelLoadError(
            f"--task {task_name} needs {_describe_needed(task)}; {checkpoint.path} is for {name}."
        )
    if task.large != (info.layers == LAYERS_14B):
        needed = (
            "14B checkpoint: 40 layers" if task.large else "checkpoint smaller than 14B: fewer than 40 layers"
        )
        raise ModelLoadError(f"--task {task_name} needs a {needed}; {checkpoint.path} has {info.layers}.")


def _describe_needed(task: Task) -> str:
    """The checkpoint that a task needs, for error messages."""
    size = " with 14B weights" if task.large else ""
    return f"a checkpoint for {MODEL_NAMES[task.model]}{size}"


def _describe_source(task: Task) -> str:
    """The option or variable that names the checkpoint, for error messages."""
    variable = _VARIABLES.get(task.model)
    return f"--ckpt_dir, or set {variable}" if variable else "--ckpt_dir"
