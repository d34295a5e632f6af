"""`python -m training.wan STAGE --out DIR`: train, export and evaluate tiny-wan."""

from __future__ import annotations

import click

from training import stages
from training.stages import command
from training.wan import evaluate, export, latents, transformer, vae
from training.wan.recipe import Recipe


class Stages(stages.Stages[Recipe]):
    """The stages of tiny-wan."""

    NAMES = ("vae", "latents", "transformer", "export", "evaluate", "grid")

    def vae(self) -> None:
        """Train the VAE and print the reconstruction quality of held-out clips."""
        trained = vae.train(self.recipe, self.out)
        quality = vae.reconstruction_db(trained, seed=self.recipe.seed, count=self.recipe.reconstructed)
        click.echo(f"vae: {quality:.1f} dB on held-out clips")

    def latents(self) -> None:
        """Encode the training clips."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.write(self.recipe, self.out, trained.eval())

    def transformer(self) -> None:
        """Train the transformer and the text encoder."""
        transformer.train(self.recipe, self.out, latents.read(self.recipe, self.out))

    def export(self) -> None:
        """Export the averaged weights, as far as they are trained."""
        trained, _ = vae.prepare(self.recipe, self.out)
        latents.restore_vae(trained, self.out)
        denoiser = transformer.averaged(*transformer.prepare(self.recipe, self.out))
        export.export(denoiser.pipeline(trained), self.export_folder)
        self.report_size()

    def evaluate(self) -> None:
        """Evaluate the export with the pipeline that serves it and write the scores to scores.json."""
        scores = evaluate.evaluate(
            self.export_folder,
            count=self.recipe.evaluated,
            reconstructed=self.recipe.reconstructed,
            seed=self.recipe.seed,
            report=click.echo,
        )
        self.write_scores(scores)

    def grid(self) -> None:
        """Generate clips for the first held-out captions and save a row of frames of each as grid.png."""
        evaluate.contact_sheet(
            self.export_folder, count=self.recipe.sheet_captions, seed=self.recipe.seed
        ).save(self.out / "grid.png")


main = command(Stages, Recipe(), name="tiny-wan")

if __name__ == "__main__":
    main()
