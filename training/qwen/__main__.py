"""`python -m training.qwen STAGE --out DIR`: train, export and measure tiny-qwen."""

from __future__ import annotations

import click

from training import stages
from training.qwen import evaluate, export, learn
from training.qwen.recipe import Recipe
from training.stages import command


class Workshop(stages.Workshop[Recipe]):
    """The stages of tiny-qwen."""

    STAGES = ("base", "instruct", "export", "evaluate")

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
        self.tell_size()

    def evaluate(self) -> None:
        """Measure the export; the scores go to scores.json."""
        found = evaluate.evaluate(
            self.exported, count=self.recipe.evaluated, seed=self.recipe.seed, tell=click.echo
        )
        self.keep_scores(found)


STAGES = Workshop.STAGES
main = command(Workshop, Recipe(), name="tiny-qwen")

if __name__ == "__main__":
    main()
