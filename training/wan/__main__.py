"""`python -m training.wan STAGE --out DIR`: train, export and measure tiny-wan."""

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
from training.wan import evaluate, export, latents, transformer, vae
from training.wan.recipe import Recipe

STAGES = ("vae", "latents", "transformer", "export", "evaluate", "grid")
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
            "vae": self.vae,
            "latents": self.latents,
            "transformer": self.transformer,
            "export": self.export,
            "evaluate": self.evaluate,
            "grid": self.grid,
        }[stage]()

    def vae(self) -> None:
        """Train the VAE and tell how well held-out clips survive it."""
        trained = vae.train(self.recipe, self.out)
        click.echo(f"vae: {vae.round_trip_db(trained, seed=self.recipe.seed):.1f} dB on held-out clips")

    def latents(self) -> None:
        """Encode the training clips."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.make(self.recipe, self.out, trained.eval())

    def transformer(self) -> None:
        """Train the transformer and the text encoder."""
        transformer.train(self.recipe, self.out, latents.read(self.recipe, self.out))

    def export(self) -> None:
        """Write the folder that ships, from the weights trained so far."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.finish(trained, self.out)
        denoiser = transformer.averaged(*transformer.prepare(self.recipe, self.out))
        export.export(denoiser.pipeline(trained), self.exported)
        click.echo(f"export: {size_mib(self.exported):.1f} MiB in {self.exported}")

    def evaluate(self) -> None:
        """Measure the export through the serving pipeline; the scores go to scores.json."""
        found = evaluate.evaluate(
            self.exported, count=self.recipe.evaluated, seed=self.recipe.seed, tell=click.echo
        )
        found["MiB"] = size_mib(self.exported)
        (self.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")

    def grid(self) -> None:
        """Draw the first held-out captions: a row of frames each."""
        evaluate.sheet(self.exported, count=self.recipe.drawn, seed=self.recipe.seed).save(
            self.out / "grid.png"
        )


@click.command()
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where the run lives."
)
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True)
@click.option("--minutes-vae", "vae_minutes", type=float, help="End the VAE's training after this long.")
@click.option(
    "--minutes-transformer",
    "transformer_minutes",
    type=float,
    help="End the transformer's training after this long.",
)
@click.option("--batch-vae", "vae_batch", type=int, default=DEFAULT.vae_batch, show_default=True)
@click.option(
    "--batch-transformer", "transformer_batch", type=int, default=DEFAULT.transformer_batch, show_default=True
)
@click.option("--clips", "evaluated", type=int, default=DEFAULT.evaluated, show_default=True)
@click.option("--threads", type=int, default=THREADS, show_default=True, help="Processors to train on.")
def main(stage: str, out: Path, threads: int, **changed: Any) -> None:
    """Train, export and measure tiny-wan; a killed run goes on when it is started again.

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
