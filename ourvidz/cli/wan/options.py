"""The options of `wan_generate.py`: names and defaults of the Wan release, and some additional ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from ourvidz.cli.wan.tasks import TASKS
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.ranges import SEED
from ourvidz.jobs.ranges import SHIFT as SHIFT_RANGE

DEFAULT_GUIDANCE_SCALE = 5.0
DEFAULT_SHIFT = 5.0

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(path_type=Path)
_OUTPUT = click.Path(dir_okay=False, writable=True, path_type=Path)
_SEED = click.IntRange(-1, int(SEED.high))
_SHIFT = click.FloatRange(0, SHIFT_RANGE.high, min_open=True)
_MULTI_GPU = "; refused: this version uses one GPU"


@dataclass(frozen=True, slots=True)
class Options:
    """The parsed options of one call. None means that the option was not given."""

    task: str
    size: str | None
    frame_num: int | None
    strict_frames: bool
    ckpt_dir: Path | None
    save_file: Path | None
    prompt: str | None
    base_seed: int
    image: Path | None
    first_frame: Path | None
    last_frame: Path | None
    sample_solver: Literal["unipc", "dpm++"]
    sample_steps: int | None
    sample_shift: float
    sample_guide_scale: float
    offload_model: bool
    t5_cpu: bool
    ulysses_size: int
    ring_size: int
    t5_fsdp: bool
    dit_fsdp: bool
    src_video: Path | None
    src_mask: Path | None
    src_ref_images: str | None
    use_prompt_extend: bool


_OPTIONS = (
    click.option(
        "--task", type=click.Choice(list(TASKS)), default="t2v-1.3B", show_default=True, help="What to make."
    ),
    click.option("--prompt", help="What it shows."),
    click.option("--size", help="WIDTH*HEIGHT in pixels, one of the task's; default 480*832."),
    click.option("--frame_num", type=click.IntRange(1), help="Frames; default 81, of a picture 1."),
    click.option("--strict_frames", is_flag=True, help="Refuse a number of frames that is not 4n+1."),
    click.option("--ckpt_dir", type=_FOLDER, help="The checkpoint; default OURVIDZ_WAN_MODEL."),
    click.option("--save_file", type=_OUTPUT, help="Where to: .mp4, or .png for one frame."),
    click.option("--base_seed", type=_SEED, default=-1, show_default=True, help="-1 draws one."),
    click.option("--image", type=_FILE, help="A picture whose content the clip keeps."),
    click.option("--first_frame", type=_FILE, help="The picture that the clip begins with."),
    click.option("--last_frame", type=_FILE, help="The picture that the clip ends on."),
    click.option(
        "--sample_solver", type=click.Choice(["unipc", "dpm++"]), default="unipc", show_default=True
    ),
    click.option("--sample_steps", type=click.IntRange(1), help="Default 50, of i2v-14B 40."),
    click.option("--sample_shift", type=_SHIFT, default=DEFAULT_SHIFT, show_default=True),
    click.option(
        "--sample_guide_scale", type=click.FloatRange(0), default=DEFAULT_GUIDANCE_SCALE, show_default=True
    ),
    click.option(
        "--offload_model",
        type=click.BOOL,
        default=True,
        show_default=True,
        help="Keep on the GPU only the part that runs.",
    ),
    click.option("--t5_cpu", is_flag=True, help="Run the text encoder on the CPU."),
    click.option("--ulysses_size", type=click.IntRange(1), default=1, help=f"More than 1{_MULTI_GPU}."),
    click.option("--ring_size", type=click.IntRange(1), default=1, help=f"More than 1{_MULTI_GPU}."),
    click.option("--t5_fsdp", is_flag=True, help=f"Shard the text encoder{_MULTI_GPU}."),
    click.option("--dit_fsdp", is_flag=True, help=f"Shard the transformer{_MULTI_GPU}."),
    click.option("--src_video", type=_FILE, help="A clip that a vace task works on."),
    click.option("--src_mask", type=_FILE, help="A clip, white where a vace task generates."),
    click.option("--src_ref_images", help="Pictures, with commas, that a vace task shows."),
    click.option(
        "--use_prompt_extend", is_flag=True, help="Refused: this version has no language model for it."
    ),
    click.option(
        "--prompt_extend_method",
        type=click.Choice(["dashscope", "local_qwen"]),
        expose_value=False,
        help="Of --use_prompt_extend.",
    ),
    click.option("--prompt_extend_model", expose_value=False, help="Of --use_prompt_extend."),
    click.option(
        "--prompt_extend_target_lang",
        type=click.Choice(["zh", "en"]),
        expose_value=False,
        help="Of --use_prompt_extend.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one line of JSON about what was made."),
)


def add_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: add all options of `wan_generate.py` to a click command, in the order of `_OPTIONS`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def invalid_option(option: str, rule: str, value: Any) -> InvalidParameters:
    """Build the error for an option whose value breaks a rule; the caller raises it."""
    return InvalidParameters(
        f"--{option} must be {rule}, not {value!r}.", field=f"--{option}", rule=rule, value=value
    )
