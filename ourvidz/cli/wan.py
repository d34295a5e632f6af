"""`wan_generate.py`: one clip or picture on this machine, with the flags of the Wan release."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli.console import emit, say
from ourvidz.cli.wan_options import Options, flags
from ourvidz.cli.wan_request import Request, read_request
from ourvidz.errors import CallerError, ModelLoadError, OurvidzError, OutOfMemory, SettingsError
from ourvidz.settings import adopt, settings, share_processors

if TYPE_CHECKING:
    from ourvidz.jobs.outcome import Outcome

EXITS: tuple[tuple[type[OurvidzError], int], ...] = (
    (CallerError, 2),
    (SettingsError, 2),
    (ModelLoadError, 3),
    (OutOfMemory, 4),
)
"""What a kind of error ends the process with; any other with 1."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@flags
def command(as_json: bool, **given: Any) -> None:
    """Make one clip or picture with Wan, on this machine, without a queue.

    Exit status: 0 it worked, 2 a wrong option, 3 the checkpoint, 4 out of memory, 1 anything else.
    """
    options = Options(**given)
    try:
        request = read_request(options, settings())
        outcome = _made(request, options)
    except OurvidzError as error:
        say(f"Error: {error.message}")
        raise click.exceptions.Exit(exit_status(error)) from None
    told = summary(request, options.task, outcome)
    _notice(told)
    if as_json:
        emit(told)
    else:
        click.echo(told["file"])


def exit_status(error: OurvidzError) -> int:
    """What the process ends with after this error."""
    return next((code for kind, code in EXITS if isinstance(error, kind)), 1)


def summary(request: Request, task: str, outcome: Outcome) -> dict[str, Any]:
    """What was made. Sizes are pixels, times seconds."""
    job, asset = request.job, outcome.assets[0].metadata
    frames = asset.get("frames", 1)
    return {
        "file": str(request.save_to),
        "task": task,
        "width": asset["width"],
        "height": asset["height"],
        "frames": frames,
        "frames_generated": asset.get("frames_generated", frames),
        "fps": job.fps,
        "seed": job.seed,
        "steps": job.steps,
        "effective_steps": asset["effective_steps"],
        "guidance_scale": asset["guidance_scale"],
        "shift": job.shift,
        "solver": job.solver,
        "reference_mode": job.reference_mode,
        "reference_backend": outcome.metadata.get("reference_backend"),
        "size_capped": outcome.metadata["size_capped"],
        "generation_time": outcome.metadata["generation_time"],
        "file_size_bytes": asset["file_size_bytes"],
    }


def _made(request: Request, options: Options) -> Outcome:
    """Only here is torch loaded: everything that can be wrong without it was looked at."""
    share_processors()
    chosen = settings()
    if chosen.gpu is not None:
        adopt(CUDA_VISIBLE_DEVICES=chosen.gpu)
    # It would speak of image processors that nobody asked for.
    adopt(TRANSFORMERS_VERBOSITY="error")
    from ourvidz.cli.wan_run import make
    from ourvidz.pipelines.wan.placement import Placement

    return make(request, chosen, Placement(offload=options.offload_model, text_on_cpu=options.t5_cpu))


def _notice(told: dict[str, Any]) -> None:
    """What was not made as it was written."""
    surplus = told["frames_generated"] - told["frames"]
    if surplus:
        say(f"{told['frames']} is not 4n+1: {told['frames_generated']} frames were made, {surplus} cut off")
    if told["size_capped"]:
        say(f"the tiny checkpoint rendered {told['width']}*{told['height']}")


def main() -> None:
    """The entry point of `wan_generate.py`. Standard output is for results: the log goes elsewhere."""
    from ourvidz import log

    log.configure("WARNING")
    for number in (signal.SIGINT, signal.SIGTERM):
        # By default one would look like any other failure, the other leave its scratch folder behind.
        signal.signal(number, _stop)
    sys.exit(command(prog_name="wan_generate.py"))


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)
