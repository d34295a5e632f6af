"""`python -m training.qwen STAGE --out DIR`: train, export and evaluate tiny-qwen."""

from __future__ import annotations

import click

from training import stages
from training.qwen import clips, evaluate, export, trainer
from training.qwen.recipe import Recipe
from training.stages import command


class Stages(stages.Stages[Recipe]):
    """The stages of tiny-qwen."""

    NAMES = ("base", "instruct", "export", "evaluate")

    def base(self) -> None:
        """Train the base model."""
        trainer.train_base(self.recipe, self.out)

    def instruct(self) -> None:
        """Train the instruct model, starting from the base model."""
        trainer.train_instruct(self.recipe, self.out)

    def export(self) -> None:
        """Export the averaged weights of both models, as far as they are trained."""
        base = trainer.prepare_base(self.recipe, self.out).averaged()
        instruct = trainer.prepare_instruct(self.recipe, self.out).averaged()
        export.export(base, instruct, self.export_folder)
        self.report_size()

    def evaluate(self) -> None:
        """Evaluate the export, also with clips of tiny-wan, and write the scores to scores.json."""
        scores = evaluate.evaluate(
            self.export_folder, count=self.recipe.evaluated, seed=self.recipe.seed, report=click.echo
        )
        scores |= clips.evaluate_clips(self.export_folder, count=self.recipe.clips, seed=self.recipe.seed)
        self.write_scores(scores)


main = command(Stages, Recipe(), name="tiny-qwen")

if __name__ == "__main__":
    main()
