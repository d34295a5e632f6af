"""The command line of a training: its stages in order, each resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import click
import torch

from ourvidz.pipelines.devices import quiet_libraries
from training.allocator import keep_freed_memory
from training.export import size_mib

THREADS = 2
OPTION_SUFFIXES = {
    "_minutes": ("minutes", "End this training after so many minutes."),
    "_batch": ("batch", "Examples in a step."),
}
"""Suffixes of recipe fields that become options: the prefix of the option, and its help."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Stages(Generic[R]):
    """The stages of one training with the hyperparameters `recipe` in the folder `out`.

    A subclass lists its stages in `NAMES` and has a method of each name.
    """

    NAMES: ClassVar[tuple[str, ...]] = ()

    recipe: R
    out: Path

    @property
    def export_folder(self) -> Path:
        """The folder that the checkpoint is exported to."""
        return self.out / "export"

    def run(self, name: str) -> None:
        """Run one stage; the stages before it must have been run. `ValueError` for an unknown name."""
        if name not in self.NAMES:
            raise ValueError(f"{name!r} is none of {', '.join(self.NAMES)}")
        getattr(self, name)()

    def report_size(self) -> None:
        """Print the size of the export."""
        click.echo(f"export: {size_mib(self.export_folder):.1f} MiB in {self.export_folder}")

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Write the scores and the size of the export to scores.json."""
        scores["MiB"] = size_mib(self.export_folder)
        (self.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")


def command(stages: type[Stages[Any]], default: Any, *, name: str) -> click.Command:
    """The command `STAGE --out DIR` of a training, with options for the seed, minutes and batches of the
    recipe `default`. The stage `all` runs every stage."""

    @click.command(
        help=f"Train, export and evaluate {name}. A run that was killed resumes when it is started again.\n\n"
        "Resume with the same options: lengths and batch sizes are not saved with the run."
    )
    @click.argument("stage", type=click.Choice(["all", *stages.NAMES]))
    @click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="The folder of the run.",
    )
    @click.option("--threads", type=int, default=THREADS, show_default=True, help="Threads that torch uses.")
    def main(stage: str, out: Path, threads: int, **options: Any) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        quiet_libraries()
        runner = stages(replace(default, **options), out)
        for name in stages.NAMES if stage == "all" else (stage,):
            runner.run(name)

    main.params.extend(_recipe_options(default))
    return main


def _recipe_options(default: Any) -> Iterator[click.Option]:
    """Options for the seed, the number of evaluated examples, and the minutes and batches of every stage."""
    evaluated = "Held-out examples that are evaluated."
    yield click.Option(["--seed"], type=int, default=default.seed, show_default=True)
    yield click.Option(
        ["--evaluated"], type=int, default=default.evaluated, show_default=True, help=evaluated
    )
    for field in fields(default):
        for suffix, (prefix, help_text) in OPTION_SUFFIXES.items():
            if field.name.endswith(suffix):
                flag = f"--{prefix}-{field.name.removesuffix(suffix)}"
                value = getattr(default, field.name)
                yield click.Option(
                    [flag, field.name],
                    type=float if value is None else type(value),
                    default=value,
                    show_default=value is not None,
                    help=help_text,
                )
