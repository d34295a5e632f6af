"""The `wan_generate.py` command: parses the options, generates, prints the result, sets the exit status."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli.console import print_json, print_note
from ourvidz.cli.wan.options import Options, add_options
from ourvidz.cli.wan.request import Request, read_request
from ourvidz.errors import CallerError, ModelLoadError, OurvidzError, OutOfMemory, SettingsError
from ourvidz.settings import set_environment, settings, share_processors, show_gpu

if TYPE_CHECKING:
    from ourvidz.jobs.outcome import Outcome

EXITS: tuple[tuple[type[OurvidzError], int], ...] = (
    (CallerError, 2),
    (SettingsError, 2),
    (ModelLoadError, 3),
    (OutOfMemory, 4),
)
"""Error class → exit status; any other error is 1."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@add_options
def command(as_json: bool, **values: Any) -> None:
    """Make one clip or picture with Wan, on this machine, without a queue.

    Exit status: 0 it worked, 2 a wrong option, 3 the checkpoint, 4 out of memory, 1 anything else.
    """
    options = Options(**values)
    try:
        request = read_request(options, settings())
        outcome = _generate(request, options)
    except OurvidzError as error:
        print_note(f"Error: {error.message}")
        raise click.exceptions.Exit(exit_status(error)) from None
    result = summary(request, options.task, outcome)
    _print_deviations(result)
    if as_json:
        print_json(result)
    else:
        click.echo(result["file"])


def exit_status(error: OurvidzError) -> int:
    """The exit status of the process for an error."""
    return next((code for kind, code in EXITS if isinstance(error, kind)), 1)


def summary(request: Request, task: str, outcome: Outcome) -> dict[str, Any]:
    """The JSON result: output file, size in pixels, frames, seed, and the parameters that were used."""
    job, asset = request.job, outcome.assets[0].metadata
    frames = asset.get("frames", 1)
    return {
        "file": str(request.output_file),
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


def _generate(request: Request, options: Options) -> Outcome:
    """Import torch and generate. All checks that need no torch have passed before."""
    share_processors()
    current = settings()
    if current.gpu is not None:
        show_gpu(current.gpu)
    # transformers would warn about image processors that this script does not use.
    set_environment(TRANSFORMERS_VERBOSITY="error")
    from ourvidz.cli.wan.generate import generate
    from ourvidz.pipelines.wan.placement import Placement

    return generate(request, current, Placement(offload=options.offload_model, text_on_cpu=options.t5_cpu))


def _print_deviations(result: dict[str, Any]) -> None:
    """Print on standard error where the result differs from the options."""
    surplus = result["frames_generated"] - result["frames"]
    if surplus:
        frames, generated = result["frames"], result["frames_generated"]
        print_note(f"{frames} is not 4n+1: {generated} frames were made, {surplus} cut off")
    if result["size_capped"]:
        print_note(f"the tiny checkpoint rendered {result['width']}*{result['height']}")


def main() -> None:
    """Entry point of `wan_generate.py`. Results go to standard output, the log to standard error."""
    from ourvidz import log

    log.configure("WARNING")
    for signum in (signal.SIGINT, signal.SIGTERM):
        # By default SIGINT would exit as any other failure does, SIGTERM would leave the temporary folder.
        signal.signal(signum, _exit_on_signal)
    sys.exit(command(prog_name="wan_generate.py"))


def _exit_on_signal(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)
