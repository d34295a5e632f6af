"""The two training stages: the base model on plain texts, then the instruct model, starting from it, on
conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from training.qwen import models
from training.qwen.corpus import conversation, plain_text
from training.qwen.recipe import Recipe
from training.qwen.tokenization import (
    IGNORED,
    Example,
    chat_example,
    pad_batch,
    text_example,
    train_tokenizer,
)
from training.runs import Length, Run

BASE_STAGE, INSTRUCT_STAGE = 2, 3
GROUPS = 2
"""A batch is split into this many groups of texts of similar length, to save padding."""


class TrainedModel:
    """A model, its tokenizer and the run that trains it, resumed from its last saved state."""

    def __init__(
        self, model: transformers.Qwen2ForCausalLM, tokenizer: transformers.Qwen2Tokenizer, run: Run
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.run = run

    def averaged(self) -> TrainedModel:
        """Replace the weights by their moving average and switch to evaluation mode; returns itself."""
        self.run.use_average()
        self.model.train(False)
        return self


def prepare_base(recipe: Recipe, folder: Path) -> TrainedModel:
    """The base model: initialized, or resumed from `folder`."""
    tokenizer = load_or_train_tokenizer(recipe, folder)
    torch.manual_seed(recipe.seed)
    model = models.build_model(recipe.shape, tokenizer)
    length = Length(recipe.base_steps, recipe.base_minutes)
    return TrainedModel(model, tokenizer, _run(recipe, folder, "base", model, length, recipe.base_lr))


def load_or_train_tokenizer(recipe: Recipe, folder: Path) -> transformers.Qwen2Tokenizer:
    """The run's tokenizer. It is trained once and saved, because weights belong to one tokenizer only."""
    saved, partial = folder / "tokenizer", folder / "tokenizer.writing"
    if not saved.is_dir():
        train_tokenizer(recipe.seed, texts=recipe.tokenizer_texts).save_pretrained(partial)
        partial.replace(saved)
    tokenizer: transformers.Qwen2Tokenizer = transformers.Qwen2Tokenizer.from_pretrained(saved)
    return tokenizer


def prepare_instruct(recipe: Recipe, folder: Path) -> TrainedModel:
    """The instruct model: the averaged base model of `folder`, or resumed from there."""
    base = prepare_base(recipe, folder).averaged()
    length = Length(recipe.instruct_steps, recipe.instruct_minutes)
    run = _run(recipe, folder, "instruct", base.model, length, recipe.instruct_lr)
    return TrainedModel(base.model, base.tokenizer, run)


def train_base(recipe: Recipe, folder: Path) -> TrainedModel:
    """Train the base model to the end of the recipe, resuming an earlier run; the averaged model."""
    trained = prepare_base(recipe, folder)

    def examples(rng: np.random.Generator) -> list[Example]:
        return [text_example(trained.tokenizer, plain_text(rng)) for _ in range(recipe.base_batch)]

    return _train(trained, (recipe.seed, BASE_STAGE), examples)


def train_instruct(recipe: Recipe, folder: Path) -> TrainedModel:
    """Train the instruct model to the end of the recipe, resuming an earlier run; the averaged model. The
    base model must have been trained in `folder`."""
    trained = prepare_instruct(recipe, folder)

    def examples(rng: np.random.Generator) -> list[Example]:
        return [chat_example(trained.tokenizer, conversation(rng)) for _ in range(recipe.instruct_batch)]

    return _train(trained, (recipe.seed, INSTRUCT_STAGE), examples)


def _train(
    trained: TrainedModel, seed: tuple[int, int], examples: Callable[[np.random.Generator], list[Example]]
) -> TrainedModel:
    """Train on fresh examples at every step, drawn from the seed and the step alone."""

    def step_loss(step: int, _progress: float) -> torch.Tensor:
        return cross_entropy(trained.model, examples(np.random.default_rng((*seed, step))))

    trained.run.train(step_loss)
    return trained.averaged()


def cross_entropy(model: transformers.Qwen2ForCausalLM, examples: Sequence[Example]) -> torch.Tensor:
    """The mean negative log-likelihood, in nats, of all labelled tokens of the examples."""
    total, count = torch.zeros(()), 0
    for ids, labels in group_by_length(examples, model.config.pad_token_id or 0):
        next_labels = labels[:, 1:]
        labelled = next_labels != IGNORED
        # Padding is on the right and attention is causal, so no text attends to it: no mask is needed.
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[labelled]
        logits = model.lm_head(hidden)
        total = total + torch.nn.functional.cross_entropy(logits, next_labels[labelled], reduction="sum")
        count += int(labelled.sum())
    return total / count


def group_by_length(examples: Sequence[Example], pad_id: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The examples sorted by length, in at most `GROUPS` padded batches of ids and labels."""
    ordered = sorted(examples, key=lambda example: len(example[0]))
    size = -(-len(ordered) // GROUPS)
    return [pad_batch(ordered[start : start + size], pad_id) for start in range(0, len(ordered), size)]


def _run(
    recipe: Recipe,
    folder: Path,
    name: str,
    model: transformers.Qwen2ForCausalLM,
    length: Length,
    peak_lr: float,
) -> Run:
    return Run(folder, name, {"model": model}, length=length, peak_lr=peak_lr, ema_decay=recipe.ema_decay)
