"""`python -m training.sdxl STAGE --out DIR`: train, export and evaluate tiny-sdxl."""

from __future__ import annotations

import click
import diffusers
import numpy as np

from training import stages
from training.plots import grid
from training.sdxl import evaluate, exact_copies, export, latents, unet, vae
from training.sdxl.models import NATIVE_PX
from training.sdxl.recipe import Recipe
from training.stages import command


class Stages(stages.Stages[Recipe]):
    """The stages of tiny-sdxl."""

    NAMES = ("vae", "latents", "unet", "export", "evaluate", "grid")

    def vae(self) -> None:
        """Train the VAE and print the reconstruction quality of held-out images."""
        trained = vae.train(self.recipe, self.out)
        quality = vae.reconstruction_db(trained, seed=self.recipe.seed, count=self.recipe.reconstructed)
        click.echo(f"vae: {quality:.1f} dB on held-out images")

    def latents(self) -> None:
        """Encode the training images."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.write(self.recipe, self.out, trained.eval())

    def unet(self) -> None:
        """Train the UNet and the text encoders."""
        trained, _ = vae.prepare(self.recipe, self.out)
        unet.train(self.recipe, self.out, latents.read(self.recipe, self.out, trained))

    def export(self) -> None:
        """Export the averaged weights, as far as they are trained."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.read(self.recipe, self.out, trained)
        denoiser = unet.averaged(*unet.prepare(self.recipe, self.out))
        export.export(denoiser.pipeline(trained), self.export_folder)
        self.report_size()

    def evaluate(self) -> None:
        """Evaluate the export with the pipeline that serves it and write the scores to scores.json."""
        scores = evaluate.evaluate(
            self.export_folder, count=self.recipe.evaluated, seed=self.recipe.seed, report=click.echo
        )
        autoencoder = diffusers.AutoencoderKL.from_pretrained(self.export_folder / "vae").float()
        images = self.recipe.reconstructed
        for edge_px, count in ((NATIVE_PX, max(images // 2, 1)), (64, images)):
            decibels = vae.reconstruction_db(autoencoder, seed=self.recipe.seed, count=count, edge_px=edge_px)
            scores[f"vae round trip dB at {edge_px} px"] = decibels
            click.echo(f"vae round trip at {edge_px} px: {decibels:.1f} dB")
        losses = exact_copies.losses_db(
            evaluate.open_pipeline(self.export_folder),
            autoencoder,
            count=max(self.recipe.evaluated // 10, 1),
            seed=self.recipe.seed,
        )
        for kind, decibels in (("mean", float(np.mean(losses))), ("worst", max(losses))):
            scores[f"exact copy below the vae round trip, {kind} dB"] = decibels
            click.echo(f"exact copy below the vae round trip, {kind}: {decibels:.1f} dB")
        self.write_scores(scores)

    def grid(self) -> None:
        """Generate images for the first held-out captions and save them as grid.png."""
        pipeline = evaluate.open_pipeline(self.export_folder)
        captions = evaluate.held_out_captions(self.recipe.sheet_captions, seed=self.recipe.seed)
        images = [evaluate.generate(pipeline, text, seed=1000 + k) for k, (_, text) in enumerate(captions)]
        grid(images, [text for _, text in captions]).save(self.out / "grid.png")


main = command(Stages, Recipe(), name="tiny-sdxl")

if __name__ == "__main__":
    main()
