"""The file that a call of `wan_generate.py` writes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from ourvidz.cli.wan_options import Options, wrong
from ourvidz.cli.wan_tasks import Task
from ourvidz.errors import InvalidParameters


def is_picture(file: Path) -> bool:
    """Whether the name says that it is one picture, and no clip."""
    return file.suffix.lower() == ".png"


def save_to(given: Options, task: Task, what: str) -> Path:
    """Where to: the file of the call, else one that is not there yet, named after the task and `what`.
    `InvalidParameters` when nothing can be written there: better now than after an hour's work."""
    file = given.save_file
    if file is None:
        ending = "png" if task.makes_a_picture else "mp4"
        file = _free(f"{given.task}_{what}", ending)
    elif file.suffix.lower() not in (".mp4", ".png"):
        raise wrong("save_file", "a file name that ends in .mp4, or .png for one frame", str(file))
    elif not file.absolute().parent.is_dir():
        raise wrong("save_file", "in a folder that exists", str(file))
    _try(file.absolute().parent)
    return file


def _free(name: str, ending: str) -> Path:
    """A file that is not there yet: equal seeds make other clips of other prompts."""
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(file for file in (Path(f"{name}.{ending}") for name in names) if not file.exists())


def _try(folder: Path) -> None:
    """Write something: what a folder's mode says is not all, a disk may be read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidParameters(
            f"--save_file: nothing can be written in {folder}: {error.strerror}.", field="--save_file"
        ) from None
