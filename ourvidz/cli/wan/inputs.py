"""The pictures and clips that a call of `wan_generate.py` names, read from this machine's disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz.cli.wan.options import Options
from ourvidz.cli.wan.tasks import Task
from ourvidz.errors import InternalError, InvalidParameters, ReferenceFrameError
from ourvidz.pipelines.base import SourceVideo
from ourvidz.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCES = ("src_video", "src_mask", "src_ref_images")
_PICTURES = ("image", "first_frame", "last_frame")
_NEEDED = {"i2v": ("image",), "flf2v": ("first_frame", "last_frame")}
"""What the tasks begin with that cannot do without a picture; they take no other."""


def references(given: Options, task: Task, chosen: Settings) -> dict[str, Image]:
    """The pictures by the names that a job has for them. `InvalidParameters` for those that are missing,
    unreadable, or not of this task."""
    named = {option: getattr(given, option) for option in _PICTURES}
    _check(given, task, {option for option, file in named.items() if file is not None})
    # An image-to-video model begins with its picture; on any other, `--image` is what the clip keeps.
    names = ("start" if task.model == "i2v" else "single", "start", "end")
    files = zip(names, named.values(), strict=True)
    return {name: _opened(file, chosen) for name, file in files if file is not None}


def source(given: Options, task: Task, chosen: Settings, *, frames: int) -> SourceVideo | None:
    """What a vace task makes its clip from, as many frames of it as there are to be; None without any."""
    named = [option for option in SOURCES if getattr(given, option) is not None]
    if not named:
        return None
    if task.model != "vace":
        raise InvalidParameters(f"--{named[0]} belongs to the vace tasks.", field=f"--{named[0]}")
    if given.src_mask is not None and given.src_video is None:
        raise InvalidParameters("--src_mask goes with --src_video.", field="--src_mask")
    listed = [name.strip() for name in (given.src_ref_images or "").split(",")]
    pictures = tuple(_opened(Path(name), chosen) for name in listed if name)
    return SourceVideo(_frames(given.src_video, frames), _frames(given.src_mask, frames), pictures)


def _check(given: Options, task: Task, named: set[str]) -> None:
    needed = _NEEDED.get(task.model)
    if needed is not None and named != set(needed):
        wanted = " and ".join(f"--{option}" for option in needed)
        raise InvalidParameters(
            f"--task {given.task} needs {wanted}, and no other picture.", field=f"--{needed[0]}"
        )
    if "image" in named and len(named) > 1:
        raise InvalidParameters("--image goes without --first_frame and --last_frame.", field="--image")
    for option in SOURCES:
        if named and getattr(given, option) is not None:
            raise InvalidParameters(f"--{option} goes without --{min(named)}.", field=f"--{option}")


def _frames(file: Path | None, most: int) -> dict[int, Image]:
    """The first frames of a clip by number."""
    if file is None:
        return {}
    from ourvidz.media.video import read_frames

    try:
        return dict(enumerate(read_frames(file, limit=most)))
    except (OSError, InternalError) as unreadable:
        raise InvalidParameters(f"{file}: {unreadable}") from None


def _opened(file: Path, chosen: Settings) -> Image:
    from ourvidz.references.decode import decode

    try:
        return decode(file.read_bytes(), max_pixels=chosen.reference_max_px)
    except OSError as error:
        raise InvalidParameters(f"{file} cannot be read: {error.strerror}.") from None
    except ReferenceFrameError as error:
        raise InvalidParameters(f"{file}: {error.message}") from None
