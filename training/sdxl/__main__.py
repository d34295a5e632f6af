"""`python -m training.sdxl STAGE --out DIR`: train, export and measure tiny-sdxl."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import diffusers
import torch

from ourvidz.pipelines.devices import quiet_libraries
from training.drawing import grid
from training.export import size_mib
from training.memory import keep_freed_memory
from training.sdxl import evaluate, export, latents, unet, vae
from training.sdxl.models import NATIVE_PX
from training.sdxl.recipe import Recipe

STAGES = ("vae", "latents", "unet", "export", "evaluate", "grid")
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
            "unet": self.unet,
            "export": self.export,
            "evaluate": self.evaluate,
            "grid": self.grid,
        }[stage]()

    def vae(self) -> None:
        """Train the VAE and tell how well held-out pictures survive it."""
        trained = vae.train(self.recipe, self.out)
        click.echo(f"vae: {vae.round_trip_db(trained, seed=self.recipe.seed):.1f} dB on held-out pictures")

    def latents(self) -> None:
        """Encode the training pictures."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.make(self.recipe, self.out, trained.eval())

    def unet(self) -> None:
        """Train the UNet and the text encoders."""
        trained, _ = vae.prepare(self.recipe, self.out)
        unet.train(self.recipe, self.out, latents.read(self.recipe, self.out, trained))

    def export(self) -> None:
        """Write the folder that ships, from the weights trained so far."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.read(self.recipe, self.out, trained)
        denoiser = unet.averaged(*unet.prepare(self.recipe, self.out))
        export.export(denoiser.pipeline(trained), self.exported)
        click.echo(f"export: {size_mib(self.exported):.1f} MiB in {self.exported}")

    def evaluate(self) -> None:
        """Measure the export through the serving pipeline; the scores go to scores.json."""
        found = evaluate.evaluate(
            self.exported, count=self.recipe.evaluated, seed=self.recipe.seed, tell=click.echo
        )
        whole = diffusers.AutoencoderKL.from_pretrained(self.exported / "vae").float()
        for edge_px, count in ((NATIVE_PX, 64), (64, 128)):
            decibels = vae.round_trip_db(whole, seed=self.recipe.seed, count=count, edge_px=edge_px)
            found[f"vae round trip dB at {edge_px} px"] = decibels
            click.echo(f"vae round trip at {edge_px} px: {decibels:.1f} dB")
        found["MiB"] = size_mib(self.exported)
        (self.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")

    def grid(self) -> None:
        """Draw the first held-out captions."""
        pipeline = evaluate.open_pipeline(self.exported)
        asked = evaluate.held_out_captions(self.recipe.drawn, seed=self.recipe.seed)
        made = [evaluate.picture(pipeline, text, seed=1000 + k) for k, (_, text) in enumerate(asked)]
        grid(made, [text for _, text in asked]).save(self.out / "grid.png")


@click.command()
@click.argument("stage", type=click.Choice(["all", *STAGES]))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where the run lives."
)
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True)
@click.option("--minutes-vae", "vae_minutes", type=float, help="End the VAE's training after this long.")
@click.option("--minutes-unet", "unet_minutes", type=float, help="End the UNet's training after this long.")
@click.option("--batch-vae", "vae_batch", type=int, default=DEFAULT.vae_batch, show_default=True)
@click.option("--batch-unet", "unet_batch", type=int, default=DEFAULT.unet_batch, show_default=True)
@click.option("--pictures", "evaluated", type=int, default=DEFAULT.evaluated, show_default=True)
@click.option("--threads", type=int, default=THREADS, show_default=True, help="Processors to train on.")
def main(stage: str, out: Path, threads: int, **changed: Any) -> None:
    """Train, export and measure tiny-sdxl; a killed run goes on when it is started again.

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
