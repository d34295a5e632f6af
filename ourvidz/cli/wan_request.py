"""What a call of `wan_generate.py` asks for, checked before anything heavy is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ourvidz.cli.wan_options import Options
from ourvidz.cli.wan_tasks import LAYERS_14B, SIZES_480P, TASKS, Task
from ourvidz.errors import InvalidParameters, InvalidPrompt, ModelLoadError, ReferenceFrameError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.defaults import draw_seed
from ourvidz.jobs.job import ReferenceMode, VideoJob
from ourvidz.jobs.ranges import PROMPT_CHARS
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint, find_wan
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 16
OWNER = "wan-generate"
"""The job id and the user of a clip that nobody queued."""


@dataclass(frozen=True, slots=True)
class Request:
    """One clip or picture to make. `references` are the pictures by the names that the job has for them."""

    job: VideoJob
    checkpoint: Checkpoint
    references: dict[str, Image]
    save_to: Path


def read_request(given: Options, chosen: Settings) -> Request:
    """`InvalidParameters` and its kin for what was written wrongly, `PolicyViolation` for what is refused,
    `ModelLoadError` for the checkpoint."""
    task = _task(given)
    _refuse_what_would_be_ignored(given)
    _check_numbers(given)
    folder = given.ckpt_dir or chosen.wan_model
    tiny = folder is None or _is_tiny(folder)
    size = _size(given, task, tiny=tiny)
    references = _references(given, chosen)
    seed = draw_seed() if given.base_seed == -1 else given.base_seed
    save_to = _save_to(given, task, f"{size[0]}x{size[1]}_{seed}")
    job = _job(given, size, _frames(given, task, save_to), seed, references, save_to)
    Gate(load_terms()).judge(job)
    return Request(job, _checkpoint(given.task, folder, chosen, tiny=tiny), references, save_to)


def _job(
    given: Options,
    size: tuple[int, int],
    frames: int,
    seed: int,
    references: dict[str, Image],
    save_to: Path,
) -> VideoJob:
    """The job as the queue would have it; its type only says what kind of file it makes."""
    kind = "image_high" if save_to.suffix == ".png" else "video_high"
    return VideoJob(
        id=OWNER,
        type=kind,
        user_id=OWNER,
        expected_time=CATALOG[kind].expected_s[1],
        prompt=_prompt(given),
        steps=given.sample_steps,
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


def _wrong(option: str, rule: str, value: Any) -> InvalidParameters:
    return InvalidParameters(
        f"--{option} must be {rule}, not {value!r}.", field=f"--{option}", rule=rule, value=value
    )


def _task(given: Options) -> Task:
    task = TASKS[given.task]
    if task.lacking is not None:
        raise InvalidParameters(
            f"--task {given.task} needs {task.lacking}, which this version does not have. "
            "--task t2v-1.3B follows --image, --first_frame and --last_frame.",
            field="--task",
        )
    return task


def _refuse_what_would_be_ignored(given: Options) -> None:
    """Options of the release that nothing here reads: silence would look like obedience."""
    for option in ("t5_fsdp", "dit_fsdp"):
        if getattr(given, option):
            raise InvalidParameters(
                f"--{option} needs several GPUs; this version uses one.", field=f"--{option}"
            )
    for option in ("ulysses_size", "ring_size"):
        if getattr(given, option) > 1:
            raise _wrong(option, "1: this version uses one GPU", getattr(given, option))
    for option in ("src_video", "src_mask", "src_ref_images"):
        if getattr(given, option) is not None:
            raise InvalidParameters(f"--{option} belongs to the vace tasks.", field=f"--{option}")
    if given.use_prompt_extend:
        raise InvalidParameters(
            "--use_prompt_extend needs a language model, which this version does not have.",
            field="--use_prompt_extend",
        )


def _check_numbers(given: Options) -> None:
    for option in ("sample_shift", "sample_guide_scale"):
        if not math.isfinite(getattr(given, option)):
            raise _wrong(option, "a number", getattr(given, option))


def _size(given: Options, task: Task, *, tiny: bool) -> tuple[int, int]:
    from ourvidz.wiring.control import TINY_WAN_SIZE

    native = "*".join(map(str, TINY_WAN_SIZE))
    allowed = (*task.sizes, native) if tiny else task.sizes
    size = given.size or (native if tiny else SIZES_480P[0])
    if size not in allowed:
        raise _wrong("size", f"one of {', '.join(allowed)} for {given.task}", size)
    width, _, height = size.partition("*")
    return int(width), int(height)


def _frames(given: Options, task: Task, save_to: Path) -> int:
    frames = given.frame_num or task.frames
    if task.makes_a_picture and frames != 1:
        raise _wrong("frame_num", f"1 for {given.task}", frames)
    if given.strict_frames and frames % 4 != 1:
        raise _wrong("frame_num", "4n+1 with --strict_frames", frames)
    if save_to.suffix == ".png" and frames != 1:
        raise _wrong("save_file", f"an .mp4 file for {frames} frames", str(save_to))
    return frames


def _prompt(given: Options) -> str:
    if given.prompt is None or not given.prompt.strip():
        raise InvalidPrompt("--prompt is missing: this version makes up no example.", field="--prompt")
    if len(given.prompt) > PROMPT_CHARS:
        raise InvalidPrompt(f"--prompt has more than {PROMPT_CHARS} characters.", field="--prompt")
    return given.prompt


def _references(given: Options, chosen: Settings) -> dict[str, Image]:
    files = {"single": given.image, "start": given.first_frame, "end": given.last_frame}
    if given.image is not None and (given.first_frame or given.last_frame):
        raise InvalidParameters("--image goes without --first_frame and --last_frame.", field="--image")
    return {name: _opened(file, chosen) for name, file in files.items() if file is not None}


def _opened(file: Path, chosen: Settings) -> Image:
    from ourvidz.references.decode import decode

    try:
        return decode(file.read_bytes(), max_pixels=chosen.reference_max_px)
    except OSError as error:
        raise InvalidParameters(f"{file} cannot be read: {error.strerror}.") from None
    except ReferenceFrameError as error:
        raise InvalidParameters(f"{file}: {error.message}") from None


def _mode(references: dict[str, Image]) -> ReferenceMode:
    if {"start", "end"} <= references.keys():
        return "both"
    modes: tuple[ReferenceMode, ...] = ("start", "end", "single")
    return next((mode for mode in modes if mode in references), "none")


def _save_to(given: Options, task: Task, what: str) -> Path:
    if given.save_file is None:
        ending = "png" if task.makes_a_picture else "mp4"
        return Path(f"{given.task}_{what}.{ending}")
    if given.save_file.suffix not in (".mp4", ".png"):
        raise _wrong(
            "save_file", "a file name that ends in .mp4, or .png for one frame", str(given.save_file)
        )
    if not given.save_file.absolute().parent.is_dir():
        raise _wrong("save_file", "in a folder that exists", str(given.save_file))
    return given.save_file


def _is_tiny(folder: Path) -> bool:
    """Whether a folder is the tiny checkpoint that ships."""
    return folder.resolve() == (PACKAGED / "tiny-wan").resolve()


def _checkpoint(task: str, folder: Path | None, chosen: Settings, *, tiny: bool) -> Checkpoint:
    large = TASKS[task].large
    if folder is None:
        if chosen.profile == "production":
            raise ModelLoadError("There is no Wan checkpoint: give --ckpt_dir, or set OURVIDZ_WAN_MODEL.")
        if large:
            raise ModelLoadError(f"--task {task} needs a checkpoint with 14B weights: give --ckpt_dir.")
        return find_wan(None)
    if (folder / "Wan2.1_VAE.pth").is_file() and not (folder / "model_index.json").is_file():
        raise ModelLoadError(
            f"{folder} is in the layout of the Wan release; this version reads the diffusers layout only."
        )
    found = find_wan(folder)
    _check_layers(found, task, large=large)
    return Checkpoint(found.path, "tiny") if tiny else found


def _check_layers(checkpoint: Checkpoint, task: str, *, large: bool) -> None:
    """Whether the checkpoint has the weights that the task's name says."""
    config = checkpoint.path / "transformer" / "config.json"
    try:
        layers = json.loads(config.read_text())["num_layers"]
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise ModelLoadError(f"{config} cannot be read: {broken}") from None
    if large != (layers == LAYERS_14B):
        needed = "14B checkpoint: 40 layers" if large else "checkpoint smaller than 14B: fewer than 40 layers"
        raise ModelLoadError(f"--task {task} needs a {needed}; {checkpoint.path} has {layers}.")
