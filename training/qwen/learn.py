"""The two stages that train: the base model on plain texts, the instruct model, from it, on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from training.qwen import models
from training.qwen.corpus import conversation, plain_text
from training.qwen.recipe import Recipe
from training.qwen.tokens import IGNORED, Example, chat_example, padded, text_example, tokenizer
from training.runs import Length, Run

BASE_STAGE, INSTRUCT_STAGE = 2, 3
GROUPS = 4
"""A batch is read in so many parts of texts of about one length: less padding."""


class Trainee:
    """A model with its tokenizer, and the run that trains it, as far as an earlier one has come."""

    def __init__(
        self, model: transformers.Qwen2ForCausalLM, words: transformers.Qwen2Tokenizer, run: Run
    ) -> None:
        self.model = model
        self.words = words
        self.run = run

    def averaged(self) -> Trainee:
        """The same with the moving average as its weights."""
        self.run.use_average()
        self.model.train(False)
        return self


def prepare_base(recipe: Recipe, folder: Path) -> Trainee:
    """The base model: untrained, or as an earlier run left it."""
    words = learnt_tokenizer(recipe, folder)
    torch.manual_seed(recipe.seed)
    model = models.model(recipe.shape, words)
    length = Length(recipe.base_steps, recipe.base_minutes)
    return Trainee(model, words, _run(recipe, folder, "base", model, length, recipe.base_lr))


def learnt_tokenizer(recipe: Recipe, folder: Path) -> transformers.Qwen2Tokenizer:
    """The run's tokenizer, learnt once: weights trained with one are worth nothing with another."""
    kept, aside = folder / "tokenizer", folder / "tokenizer.writing"
    if not kept.is_dir():
        tokenizer(recipe.seed, texts=recipe.tokenizer_texts).save_pretrained(aside)
        aside.replace(kept)
    words: transformers.Qwen2Tokenizer = transformers.Qwen2Tokenizer.from_pretrained(kept)
    return words


def prepare_instruct(recipe: Recipe, folder: Path) -> Trainee:
    """The instruct model: the trained base model, or as an earlier run left it."""
    base = prepare_base(recipe, folder).averaged()
    length = Length(recipe.instruct_steps, recipe.instruct_minutes)
    run = _run(recipe, folder, "instruct", base.model, length, recipe.instruct_lr)
    return Trainee(base.model, base.words, run)


def train_base(recipe: Recipe, folder: Path) -> Trainee:
    """Train to the end of the recipe, or go on with an earlier run."""
    trainee = prepare_base(recipe, folder)

    def loss_of(step: int, _progress: float) -> torch.Tensor:
        draw = np.random.default_rng((recipe.seed, BASE_STAGE, step))
        texts = (plain_text(draw) for _ in range(recipe.base_batch))
        return loss(trainee.model, [text_example(trainee.words, text) for text in texts])

    trainee.run.train(loss_of)
    return trainee.averaged()


def train_instruct(recipe: Recipe, folder: Path) -> Trainee:
    """Train to the end of the recipe, or go on with an earlier run; the base model must have been trained."""
    trainee = prepare_instruct(recipe, folder)

    def loss_of(step: int, _progress: float) -> torch.Tensor:
        draw = np.random.default_rng((recipe.seed, INSTRUCT_STAGE, step))
        talks = (conversation(draw) for _ in range(recipe.instruct_batch))
        return loss(trainee.model, [chat_example(trainee.words, talk) for talk in talks])

    trainee.run.train(loss_of)
    return trainee.averaged()


def loss(model: transformers.Qwen2ForCausalLM, examples: Sequence[Example]) -> torch.Tensor:
    """The mean over all learnt tokens of minus the logarithm of their probability."""
    total, count = torch.zeros(()), 0
    for ids, labels in grouped(examples, model.config.pad_token_id or 0):
        next_labels = labels[:, 1:]
        learnt = next_labels != IGNORED
        # Padding comes last and attention looks back alone, so no text sees it: no mask is needed.
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[learnt]
        logits = model.lm_head(hidden)
        total = total + torch.nn.functional.cross_entropy(logits, next_labels[learnt], reduction="sum")
        count += int(learnt.sum())
    return total / count


def grouped(examples: Sequence[Example], pad: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The examples by length, in at most `GROUPS` padded parts."""
    ordered = sorted(examples, key=lambda example: len(example[0]))
    size = -(-len(ordered) // GROUPS)
    return [padded(ordered[at : at + size], pad) for at in range(0, len(ordered), size)]


def _run(
    recipe: Recipe,
    folder: Path,
    name: str,
    model: transformers.Qwen2ForCausalLM,
    length: Length,
    peak_lr: float,
) -> Run:
    return Run(folder, name, {"model": model}, length=length, peak_lr=peak_lr, ema_decay=recipe.ema_decay)
