"""`python -m training.sdxl STAGE --out DIR`: train, export and measure tiny-sdxl."""

from __future__ import annotations

import click
import diffusers
import numpy as np

from training import stages
from training.drawing import grid
from training.sdxl import copies, evaluate, export, latents, unet, vae
from training.sdxl.models import NATIVE_PX
from training.sdxl.recipe import Recipe
from training.stages import command


class Workshop(stages.Workshop[Recipe]):
    """The stages of tiny-sdxl."""

    STAGES = ("vae", "latents", "unet", "export", "evaluate", "grid")

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
        self.tell_size()

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
        lost = copies.losses_db(
            evaluate.open_pipeline(self.exported),
            whole,
            count=max(self.recipe.evaluated // 10, 1),
            seed=self.recipe.seed,
        )
        for kind, decibels in (("mean", float(np.mean(lost))), ("worst", max(lost))):
            found[f"exact copy below the vae round trip, {kind} dB"] = decibels
            click.echo(f"exact copy below the vae round trip, {kind}: {decibels:.1f} dB")
        self.keep_scores(found)

    def grid(self) -> None:
        """Draw the first held-out captions."""
        pipeline = evaluate.open_pipeline(self.exported)
        asked = evaluate.held_out_captions(self.recipe.drawn, seed=self.recipe.seed)
        made = [evaluate.picture(pipeline, text, seed=1000 + k) for k, (_, text) in enumerate(asked)]
        grid(made, [text for _, text in asked]).save(self.out / "grid.png")


STAGES = Workshop.STAGES
main = command(Workshop, Recipe(), name="tiny-sdxl")

if __name__ == "__main__":
    main()
