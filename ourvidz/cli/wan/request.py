"""What a call of `wan_generate.py` asks for, checked before anything heavy is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz.cli.wan import checkpoints, inputs
from ourvidz.cli.wan.options import Options, invalid_option
from ourvidz.cli.wan.output import choose_output_file, is_image_file
from ourvidz.cli.wan.tasks import SIZES_480P, TASKS, Task
from ourvidz.errors import InvalidParameters, InvalidPrompt
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.defaults import draw_seed
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.ranges import PROMPT_CHARS
from ourvidz.jobs.sanitize import is_well_formed
from ourvidz.jobs.videos import refuse_too_large
from ourvidz.pipelines.base import SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 16
OWNER = "wan-generate"
"""The job id and the user of a clip that nobody queued."""


@dataclass(frozen=True, slots=True)
class Request:
    """One clip or picture to make. `references` are the pictures by the names that the job has for them;
    `source` is what VACE makes the clip from, `vace` a second checkpoint that follows references."""

    job: VideoJob
    checkpoint: Checkpoint
    references: dict[str, Image]
    output_file: Path
    source: SourceVideo | None = None
    vace: Checkpoint | None = None


def read_request(given: Options, chosen: Settings) -> Request:
    """`InvalidParameters` and its kin for what was written wrongly, `PolicyViolation` for what is refused,
    `ModelLoadError` for the checkpoint."""
    task = TASKS[given.task]
    _refuse_what_would_be_ignored(given)
    _check_numbers(given)
    folder = checkpoints.folder_of(given, task, chosen)
    tiny = folder is None or checkpoints.is_tiny(folder)
    size = _size(given, task, tiny=tiny)
    references = inputs.references(given, task, chosen)
    seed = draw_seed() if given.base_seed == -1 else given.base_seed
    output_file = choose_output_file(given, task, f"{size[0]}x{size[1]}_{seed}")
    frames = _frames(given, task, output_file)
    refuse_too_large("--frame_num", frames, size, most=_most_frame_pixels(task, chosen, tiny=tiny))
    source = inputs.source(given, task, chosen, frames=frames)
    job = _job(given, size, frames, seed, references, output_file)
    Gate(load_terms()).judge(job)
    checkpoint = checkpoints.find(given.task, folder, chosen)
    vace = checkpoints.find_vace(given, task, chosen, needed=bool(references))
    return Request(job, checkpoint, references, output_file, source, vace)


def _job(
    given: Options,
    size: tuple[int, int],
    frames: int,
    seed: int,
    references: dict[str, Image],
    output_file: Path,
) -> VideoJob:
    """The job as the queue would have it; its type only says what kind of file it makes."""
    kind = "image_high" if is_image_file(output_file) else "video_high"
    return VideoJob(
        id=OWNER,
        type=kind,
        user_id=OWNER,
        expected_time=CATALOG[kind].expected_s[1],
        prompt=_prompt(given),
        steps=given.sample_steps or TASKS[given.task].steps,
        guidance_scale=given.sample_guide_scale,
        width=size[0],
        height=size[1],
        frames=frames,
        fps=FPS,
        solver=given.sample_solver,
        shift=given.sample_shift,
        seed=seed,
        seed_drawn=given.base_seed == -1,
        reference_mode=_mode(references),
        **{f"{name}_reference": name for name in references},
    )


def _refuse_what_would_be_ignored(given: Options) -> None:
    """Options of the release that nothing here reads: silence would look like obedience."""
    for option in ("t5_fsdp", "dit_fsdp"):
        if getattr(given, option):
            raise InvalidParameters(
                f"--{option} needs several GPUs; this version uses one.", field=f"--{option}"
            )
    for option in ("ulysses_size", "ring_size"):
        if getattr(given, option) > 1:
            raise invalid_option(option, "1: this version uses one GPU", getattr(given, option))
    if given.use_prompt_extend:
        raise InvalidParameters(
            "--use_prompt_extend needs a language model, which this version does not have.",
            field="--use_prompt_extend",
        )


def _check_numbers(given: Options) -> None:
    for option in ("sample_shift", "sample_guide_scale"):
        if not math.isfinite(getattr(given, option)):
            raise invalid_option(option, "a number", getattr(given, option))


def _size(given: Options, task: Task, *, tiny: bool) -> tuple[int, int]:
    from ourvidz.wiring.control import TINY_WAN_SIZE

    native = "*".join(map(str, TINY_WAN_SIZE))
    allowed = (*task.sizes, native) if tiny else task.sizes
    size = given.size or (native if tiny else SIZES_480P[0])
    if size not in allowed:
        raise invalid_option("size", f"one of {', '.join(allowed)} for {given.task}", size)
    width, _, height = size.partition("*")
    return int(width), int(height)


def _frames(given: Options, task: Task, output_file: Path) -> int:
    frames = given.frame_num or task.frames
    if task.is_image and frames != 1:
        raise invalid_option("frame_num", f"1 for {given.task}", frames)
    if given.strict_frames and frames % 4 != 1:
        raise invalid_option("frame_num", "4n+1 with --strict_frames", frames)
    if is_image_file(output_file) and frames != 1:
        raise invalid_option("save_file", f"an .mp4 file for {frames} frames", str(output_file))
    return frames


def _most_frame_pixels(task: Task, chosen: Settings, *, tiny: bool) -> int | None:
    """How many pixels the frames of a clip may have together; None means any number."""
    from ourvidz.wiring.control import wan_frame_pixels

    sizes = [tuple(map(int, size.split("*"))) for size in task.sizes]
    width, height = max(sizes, key=math.prod)
    return wan_frame_pixels(chosen, (width, height), tiny=tiny)


def _prompt(given: Options) -> str:
    if given.prompt is None or not given.prompt.strip():
        raise InvalidPrompt("--prompt is missing: this version makes up no example.", field="--prompt")
    if len(given.prompt) > PROMPT_CHARS:
        raise InvalidPrompt(f"--prompt has more than {PROMPT_CHARS} characters.", field="--prompt")
    if not is_well_formed(given.prompt):
        raise InvalidPrompt("--prompt is not text in UTF-8.", field="--prompt")
    return given.prompt


def _mode(references: dict[str, Image]) -> ReferenceMode:
    if {"start", "end"} <= references.keys():
        return "both"
    modes: tuple[ReferenceMode, ...] = ("start", "end", "single")
    return next((mode for mode in modes if mode in references), "none")
