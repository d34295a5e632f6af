"""The trained tiny-qwen enriches prompts and listens: read from its words, in plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ourvidz.pipelines.checksums import verify
from training.qwen import evaluate as measure
from training.qwen.dialogues import MULTI_TURN, Message
from training.qwen.generation import TextGenerator

SEED = 7
PROMPTS = 24
TURNS = 16

pytestmark = pytest.mark.timeout(300)

Open = Callable[[str], TextGenerator]


@pytest.fixture(scope="module")
def speaker(trained: Callable[[str], Path]) -> Open:
    """Loads a variant of the trained checkpoint."""
    found = trained("tiny-qwen")
    verify(found)
    torch.manual_seed(SEED)
    return lambda variant: TextGenerator(found / variant)


def told(system: str, prompt: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def test_an_enriched_prompt_keeps_every_word_and_gains_some(speaker: Open) -> None:
    """An enhancement that loses the red of a red circle is worse than none."""
    prompts = measure.held_out_prompts(PROMPTS, SEED)
    answers = speaker("instruct").chat([told(measure.NEUTRAL, one.text) for one in prompts])
    assert measure.enriched_share(prompts, answers) >= 0.9


def test_the_base_model_enriches_by_going_on(speaker: Open) -> None:
    """The enhancement of clips runs on the base model, which has no chat template."""
    prompts = measure.held_out_prompts(PROMPTS // 2, SEED)
    texts = [measure.COMPLETION_PROMPT.format(prompt=one.text) for one in prompts]
    lines = [answer.split("\n")[0] for answer in speaker("base").complete(texts)]
    assert measure.enriched_share(prompts, lines) >= 0.8


def test_the_base_model_continues_a_text(speaker: Open) -> None:
    """It goes on in words it knows, and does not stop at once."""
    halves = ["a big red circle on a", "a small yellow star at the", "a green hill under a"]
    known = measure.known_words(SEED)
    for text in speaker("base").complete(halves, max_tokens=20):
        words = measure.words_of(text)
        assert words
        assert set(words) <= known


def test_an_answer_depends_on_an_earlier_turn(speaker: Open) -> None:
    """A conversation is more than its last message."""
    draws = [np.random.default_rng((SEED, 31, k)) for k in range(TURNS)]
    talks = [MULTI_TURN[k % len(MULTI_TURN)](draw, True) for k, draw in enumerate(draws)]
    model = speaker("instruct")
    whole = measure.correct_share(talks, model.chat([talk.messages for talk in talks]))
    last = measure.correct_share(talks, model.chat([talk.messages[-1:] for talk in talks]))
    assert whole >= 0.75
    assert last <= whole / 2


def test_the_system_prompt_changes_the_answer(speaker: Open) -> None:
    """What a system prompt asks for comes; without it, it does not."""
    question: Message = {"role": "user", "content": "The circle is blue. What colour is the circle?"}
    model = speaker("instruct")
    plain, loud = model.chat(
        [[question], [{"role": "system", "content": "Answer in capital letters."}, question]]
    )
    assert loud == loud.upper() != plain
    assert "blue" in plain.lower()
    assert "BLUE" in loud


def test_greedy_answers_repeat(speaker: Open) -> None:
    """Temperature 0 is deterministic."""
    asked = [told(measure.NEUTRAL, "a white square on a pink background")]
    model = speaker("instruct")
    assert model.chat(asked) == model.chat(asked)
