"""Reads the image and video files of the options of `wan_generate.py`."""

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

SOURCE_OPTIONS = ("src_video", "src_mask", "src_ref_images")
"""The options of a VACE source video."""
REFERENCE_OPTIONS = ("image", "first_frame", "last_frame")
"""The options of reference images."""
_REQUIRED_REFERENCES = {"i2v": ("image",), "flf2v": ("first_frame", "last_frame")}
"""Required references by Wan model; these models accept no others."""


def read_references(options: Options, task: Task, settings: Settings) -> dict[str, Image]:
    """Read the reference images; keys are the names of `ReferenceImages`: single, start, end.

    Raises `InvalidParameters` for a file that cannot be read, and for references that are missing or that the
    task does not take.
    """
    files = {option: getattr(options, option) for option in REFERENCE_OPTIONS}
    _check_combination(options, task, {option for option, file in files.items() if file is not None})
    # `--image` is the first frame of an image-to-video model, and the content reference of any other.
    names = ("start" if task.model == "i2v" else "single", "start", "end")
    named_files = zip(names, files.values(), strict=True)
    return {name: _read_image(file, settings) for name, file in named_files if file is not None}


def read_source(options: Options, task: Task, settings: Settings, *, frames: int) -> SourceVideo | None:
    """Read the source of a VACE task: at most `frames` frames and masks, and reference images.

    None without source options. Raises `InvalidParameters` for an unreadable file and for another task.
    """
    source_options = [option for option in SOURCE_OPTIONS if getattr(options, option) is not None]
    if not source_options:
        return None
    if task.model != "vace":
        option = f"--{source_options[0]}"
        raise InvalidParameters(f"{option} belongs to the vace tasks.", field=option)
    if options.src_mask is not None and options.src_video is None:
        raise InvalidParameters("--src_mask goes with --src_video.", field="--src_mask")
    names = [name.strip() for name in (options.src_ref_images or "").split(",")]
    images = tuple(_read_image(Path(name), settings) for name in names if name)
    return SourceVideo(
        _read_frames(options.src_video, frames), _read_frames(options.src_mask, frames), images
    )


def _check_combination(options: Options, task: Task, references: set[str]) -> None:
    """Raise `InvalidParameters` if the names of reference options contradict each other or the task."""
    required = _REQUIRED_REFERENCES.get(task.model)
    if required is not None and references != set(required):
        names = " and ".join(f"--{option}" for option in required)
        raise InvalidParameters(
            f"--task {options.task} needs {names}, and no other picture.", field=f"--{required[0]}"
        )
    if "image" in references and len(references) > 1:
        raise InvalidParameters("--image goes without --first_frame and --last_frame.", field="--image")
    for option in SOURCE_OPTIONS:
        if references and getattr(options, option) is not None:
            raise InvalidParameters(f"--{option} goes without --{min(references)}.", field=f"--{option}")


def _read_frames(file: Path | None, limit: int) -> dict[int, Image]:
    """The first `limit` frames of a video by frame number; empty without a file."""
    if file is None:
        return {}
    from ourvidz.media.video import read_frames

    try:
        return dict(enumerate(read_frames(file, limit=limit)))
    except (OSError, InternalError) as error:
        raise InvalidParameters(f"{file}: {error}") from None


def _read_image(file: Path, settings: Settings) -> Image:
    """Read and decode an image file. Raises `InvalidParameters`."""
    from ourvidz.references.decode import decode

    try:
        return decode(file.read_bytes(), max_pixels=settings.reference_max_px)
    except OSError as error:
        raise InvalidParameters(f"{file} cannot be read: {error.strerror}.") from None
    except ReferenceFrameError as error:
        raise InvalidParameters(f"{file}: {error.message}") from None
