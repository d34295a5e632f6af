"""A training run as a command: its stages in their order, each of which goes on where it was left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import click
import torch

from ourvidz.pipelines.devices import quiet_libraries
from training.export import size_mib
from training.memory import keep_freed_memory

THREADS = 2
LIMITS = {
    "_minutes": ("minutes", "End this training after so many minutes."),
    "_batch": ("batch", "Examples in a step."),
}
"""The endings of a recipe's fields that are options, what those are called, and their help."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Workshop(Generic[R]):
    """What is made of `recipe` in the folder `out`. A stage is a method of its name."""

    STAGES: ClassVar[tuple[str, ...]] = ()

    recipe: R
    out: Path

    @property
    def exported(self) -> Path:
        """The folder that ships."""
        return self.out / "export"

    def run(self, stage: str) -> None:
        """Run one stage; the stages before it must have been run."""
        if stage not in self.STAGES:
            raise ValueError(f"{stage!r} is none of {', '.join(self.STAGES)}")
        getattr(self, stage)()

    def tell_size(self) -> None:
        """Say what was exported."""
        click.echo(f"export: {size_mib(self.exported):.1f} MiB in {self.exported}")

    def keep_scores(self, found: dict[str, Any]) -> None:
        """Write what was measured to scores.json."""
        found["MiB"] = size_mib(self.exported)
        (self.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")


def command(made: type[Workshop[Any]], default: Any, *, name: str) -> click.Command:
    """`STAGE --out DIR` with options for the minutes and batches of the recipe `default`."""
    stages = made.STAGES

    @click.command(
        help=f"Train, export and measure {name}; a killed run goes on when it is started again.\n\n"
        "Resume with the same options: lengths and batches are not kept with the run."
    )
    @click.argument("stage", type=click.Choice(["all", *stages]))
    @click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where the run lives."
    )
    @click.option("--threads", type=int, default=THREADS, show_default=True, help="Processors to train on.")
    def main(stage: str, out: Path, threads: int, **changed: Any) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        quiet_libraries()
        workshop = made(replace(default, **changed), out)
        for one in stages if stage == "all" else (stage,):
            workshop.run(one)

    main.params.extend(_options(default))
    return main


def _options(default: Any) -> Iterator[click.Option]:
    """Seed, how many held-out examples are measured, and the minutes and batches of every training."""
    told = "Held-out examples that are measured."
    yield click.Option(["--seed"], type=int, default=default.seed, show_default=True)
    yield click.Option(["--evaluated"], type=int, default=default.evaluated, show_default=True, help=told)
    for field in fields(default):
        for ending, (called, help_text) in LIMITS.items():
            if field.name.endswith(ending):
                flag = f"--{called}-{field.name.removesuffix(ending)}"
                value = getattr(default, field.name)
                kind = float if value is None else type(value)
                shown = value is not None
                yield click.Option(
                    [flag, field.name], type=kind, default=value, show_default=shown, help=help_text
                )
