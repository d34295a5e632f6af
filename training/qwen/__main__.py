"""`python -m training.qwen STAGE --out DIR`: train, export and measure tiny-qwen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from ourvidz.pipelines.devices import quiet_libraries
from training.export import size_mib
from training.memory import keep_freed_memory
from training.qwen import evaluate, export, learn
from training.qwen.recipe import Recipe

STAGES = ("base", "instruct", "export", "evaluate")
THREADS = 2
DEFAULT = Recipe()


@dataclass(frozen=True, slots=True)
class Workshop:
    """One training run: what is made of `recipe` in `out`. Every stage goes on where it was left."""

    recipe: Recipe
    out: Path

    @property
    def exported(self) -> Path:
        """The folder that ships."""
        return self.out / "export"

    def run(self, stage: str) -> None:
        """Run one stage; the stages before it must have been run."""
        {
            "base": self.base,
            "instruct": self.instruct,
            "export": self.export,
            "evaluate": self.evaluate,
        }[stage]()

    def base(self) -> None:
        """Train the base model."""
        learn.train_base(self.recipe, self.out)

    def instruct(self) -> None:
        """Train the instruct model from the base model."""
        learn.train_instruct(self.recipe, self.out)

    def export(self) -> None:
        """Write the folders that ship, from the weights trained so far."""
        base = learn.prepare_base(self.recipe, self.out).averaged()
        instruct = learn.prepare_instruct(self.recipe, self.out).averaged()
        export.export(base, instruct, self.exported)
        click.echo(f"export: {size_mib(self.exported):.1f} MiB in {self.exported}")

    def evaluate(self) -> None:
        """Measure the export; the scores go to scores.json."""
        found = evaluate.evaluate(
            self.exported, count=self.recipe.evaluated, seed=self.recipe.seed, tell=click.echo
        )
        found["MiB"] = size_mib(self.exported)
        (self.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")


@click.command()
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where the run lives."
)
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True)
@click.option(
    "--minutes-base", "base_minutes", type=float, help="End the base model's training after this long."
)
@click.option(
    "--minutes-instruct",
    "instruct_minutes",
    type=float,
    help="End the instruct model's training after this long.",
)
@click.option("--batch-base", "base_batch", type=int, default=DEFAULT.base_batch, show_default=True)
@click.option(
    "--batch-instruct", "instruct_batch", type=int, default=DEFAULT.instruct_batch, show_default=True
)
@click.option("--prompts", "evaluated", type=int, default=DEFAULT.evaluated, show_default=True)
@click.option("--threads", type=int, default=THREADS, show_default=True, help="Processors to train on.")
def main(stage: str, out: Path, threads: int, **changed: Any) -> None:
    """Train, export and measure tiny-qwen; a killed run goes on when it is started again.

    Resume with the same options: lengths and batches are not kept with the run.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    quiet_libraries()
    workshop = Workshop(replace(DEFAULT, **changed), out)
    for one in STAGES if stage == "all" else (stage,):
        workshop.run(one)


if __name__ == "__main__":
    main()
