"""The output file of `wan_generate.py`."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from ourvidz.cli.wan.options import Options, invalid_option
from ourvidz.cli.wan.tasks import Task
from ourvidz.errors import InvalidParameters


def is_image_file(file: Path) -> bool:
    """Whether the file name is that of a single image (.png) and not of a clip."""
    return file.suffix.lower() == ".png"


def choose_output_file(options: Options, task: Task, suffix: str) -> Path:
    """The file of `--save_file`, else `{task}_{suffix}.mp4` or `.png` in the working directory.

    A default name gets a number if the file exists. Raises `InvalidParameters` for a wrong extension, a
    missing folder, or a folder that cannot be written.
    """
    file = options.save_file
    if file is None:
        extension = "png" if task.is_image else "mp4"
        file = _unused_file(f"{options.task}_{suffix}", extension)
    elif file.suffix.lower() not in (".mp4", ".png"):
        raise invalid_option("save_file", "a file name that ends in .mp4, or .png for one frame", str(file))
    elif not file.absolute().parent.is_dir():
        raise invalid_option("save_file", "in a folder that exists", str(file))
    _require_writable(file.absolute().parent)
    return file


def _unused_file(stem: str, extension: str) -> Path:
    """The first of stem, stem-2, stem-3, … that does not exist: equal seeds of two prompts share a stem."""
    stems = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
    return next(file for file in (Path(f"{name}.{extension}") for name in stems) if not file.exists())


def _require_writable(folder: Path) -> None:
    """Create and delete a temporary file: permission bits do not show a read-only file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidParameters(
            f"--save_file: nothing can be written in {folder}: {error.strerror}.", field="--save_file"
        ) from None
