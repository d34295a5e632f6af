"""The request of one `wan_generate.py` call: its options, checked and resolved before torch is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz.cli.wan.checkpoints import (
    checkpoint_folder,
    find_checkpoint,
    find_reference_checkpoint,
    is_tiny,
)
from ourvidz.cli.wan.inputs import read_references, read_source
from ourvidz.cli.wan.options import Options, invalid_option
from ourvidz.cli.wan.output import choose_output_file, is_image_file
from ourvidz.cli.wan.tasks import SIZES_480P, TASKS, Task
from ourvidz.errors import InvalidParameters, InvalidPrompt
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.defaults import draw_seed
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.ranges import PROMPT_CHARS
from ourvidz.jobs.sanitize import is_storable
from ourvidz.jobs.videos import check_frame_pixels
from ourvidz.pipelines.base import SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 16
JOB_ID = "wan-generate"
"""The id and the user of the job: it is in no ledger and belongs to no caller."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, and where to write it.

    references: images by the names of `ReferenceImages`. source: the source video of a VACE task. vace: a
    second checkpoint, with which a text-to-video task follows its references.
    """

    job: VideoJob
    checkpoint: Checkpoint
    references: dict[str, Image]
    output_file: Path
    source: SourceVideo | None = None
    vace: Checkpoint | None = None


def read_request(options: Options, settings: Settings) -> Request:
    """Check the options, read the input files, and find the checkpoints.

    Raises `InvalidParameters` or `InvalidPrompt` for a wrong option, `PolicyViolation` if the safety gate
    refuses the prompt, and `ModelLoadError` for the checkpoint.
    """
    task = TASKS[options.task]
    _refuse_unsupported(options)
    _require_finite(options)
    folder = checkpoint_folder(options, task, settings)
    tiny = folder is None or is_tiny(folder)
    size = _size(options, task, tiny=tiny)
    references = read_references(options, task, settings)
    seed = draw_seed() if options.base_seed == -1 else options.base_seed
    output_file = choose_output_file(options, task, f"{size[0]}x{size[1]}_{seed}")
    frames = _frames(options, task, output_file)
    check_frame_pixels("--frame_num", frames, size, limit=_max_frame_pixels(task, settings, tiny=tiny))
    source = read_source(options, task, settings, frames=frames)
    job = _job(options, size, frames, seed, references, output_file)
    Gate(load_terms()).check_job(job)
    checkpoint = find_checkpoint(options.task, folder, settings)
    vace = find_reference_checkpoint(options, task, settings) if references else None
    return Request(job, checkpoint, references, output_file, source, vace)


def _job(
    options: Options,
    size: tuple[int, int],
    frames: int,
    seed: int,
    references: dict[str, Image],
    output_file: Path,
) -> VideoJob:
    """The job that the workflow runs. Its type decides only between an image and a video file."""
    job_type = "image_high" if is_image_file(output_file) else "video_high"
    return VideoJob(
        id=JOB_ID,
        type=job_type,
        user_id=JOB_ID,
        expected_time=CATALOG[job_type].expected_s[1],
        prompt=_prompt(options),
        steps=options.sample_steps or TASKS[options.task].steps,
        guidance_scale=options.sample_guide_scale,
        width=size[0],
        height=size[1],
        frames=frames,
        fps=FPS,
        solver=options.sample_solver,
        shift=options.sample_shift,
        seed=seed,
        seed_drawn=options.base_seed == -1,
        reference_mode=_reference_mode(references),
        **{f"{name}_reference": name for name in references},
    )


def _refuse_unsupported(options: Options) -> None:
    """Raise `InvalidParameters` for options of the release that this version does not implement."""
    for option in ("t5_fsdp", "dit_fsdp"):
        if getattr(options, option):
            raise InvalidParameters(
                f"--{option} needs several GPUs; this version uses one.", field=f"--{option}"
            )
    for option in ("ulysses_size", "ring_size"):
        if getattr(options, option) > 1:
            raise invalid_option(option, "1: this version uses one GPU", getattr(options, option))
    if options.use_prompt_extend:
        raise InvalidParameters(
            "--use_prompt_extend needs a language model, which this version does not have.",
            field="--use_prompt_extend",
        )


def _require_finite(options: Options) -> None:
    """Raise `InvalidParameters` for NaN and infinity, which click accepts as numbers."""
    for option in ("sample_shift", "sample_guide_scale"):
        if not math.isfinite(getattr(options, option)):
            raise invalid_option(option, "a number", getattr(options, option))


def _size(options: Options, task: Task, *, tiny: bool) -> tuple[int, int]:
    """Width and height in pixels: one of the task's sizes, or the native size of the tiny checkpoint."""
    from ourvidz.wiring.control import TINY_WAN_SIZE

    native = "*".join(map(str, TINY_WAN_SIZE))
    allowed = (*task.sizes, native) if tiny else task.sizes
    size = options.size or (native if tiny else SIZES_480P[0])
    if size not in allowed:
        raise invalid_option("size", f"one of {', '.join(allowed)} for {options.task}", size)
    width, _, height = size.partition("*")
    return int(width), int(height)


def _frames(options: Options, task: Task, output_file: Path) -> int:
    """The number of frames, checked against the task, `--strict_frames` and the kind of output file."""
    frames = options.frame_num or task.frames
    if task.is_image and frames != 1:
        raise invalid_option("frame_num", f"1 for {options.task}", frames)
    if options.strict_frames and frames % 4 != 1:
        raise invalid_option("frame_num", "4n+1 with --strict_frames", frames)
    if is_image_file(output_file) and frames != 1:
        raise invalid_option("save_file", f"an .mp4 file for {frames} frames", str(output_file))
    return frames


def _max_frame_pixels(task: Task, settings: Settings, *, tiny: bool) -> int | None:
    """The limit of frames x width x height; None means no limit."""
    from ourvidz.wiring.control import wan_frame_pixels

    sizes = [tuple(map(int, size.split("*"))) for size in task.sizes]
    width, height = max(sizes, key=math.prod)
    return wan_frame_pixels(settings, (width, height), tiny=tiny)


def _prompt(options: Options) -> str:
    """The prompt. Raises `InvalidPrompt` if it is missing, too long or no valid UTF-8."""
    if options.prompt is None or not options.prompt.strip():
        raise InvalidPrompt("--prompt is missing: this version makes up no example.", field="--prompt")
    if len(options.prompt) > PROMPT_CHARS:
        raise InvalidPrompt(f"--prompt has more than {PROMPT_CHARS} characters.", field="--prompt")
    if not is_storable(options.prompt):
        raise InvalidPrompt("--prompt is not text in UTF-8.", field="--prompt")
    return options.prompt


def _reference_mode(references: dict[str, Image]) -> ReferenceMode:
    """The reference mode of a set of references by name."""
    if {"start", "end"} <= references.keys():
        return "both"
    modes: tuple[ReferenceMode, ...] = ("start", "end", "single")
    return next((mode for mode in modes if mode in references), "none")
