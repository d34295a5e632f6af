"""`python -m training.wan STAGE --out DIR`: train, export and measure tiny-wan."""

from __future__ import annotations

import click

from training import stages
from training.stages import command
from training.wan import evaluate, export, latents, transformer, vae
from training.wan.recipe import Recipe


class Workshop(stages.Workshop[Recipe]):
    """The stages of tiny-wan."""

    STAGES = ("vae", "latents", "transformer", "export", "evaluate", "grid")

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
        self.tell_size()

    def evaluate(self) -> None:
        """Measure the export through the serving pipeline; the scores go to scores.json."""
        found = evaluate.evaluate(
            self.exported, count=self.recipe.evaluated, seed=self.recipe.seed, tell=click.echo
        )
        self.keep_scores(found)

    def grid(self) -> None:
        """Draw the first held-out captions: a row of frames each."""
        evaluate.sheet(self.exported, count=self.recipe.drawn, seed=self.recipe.seed).save(
            self.out / "grid.png"
        )


STAGES = Workshop.STAGES
main = command(Workshop, Recipe(), name="tiny-wan")

if __name__ == "__main__":
    main()
