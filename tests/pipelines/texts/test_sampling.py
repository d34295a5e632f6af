"""The next token of several texts, each by its own rules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ourvidz.pipelines.texts import sampling
from ourvidz.pipelines.texts.sampling import Sampler, SamplingState

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
MANY = 4000


def choices(**changed: Any) -> SamplingState:
    fields: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "uniforms": torch.rand(MANY, generator=torch.Generator().manual_seed(1)).tolist(),
    }
    return SamplingState(**(fields | changed))


def drawn(count: int = MANY, **changed: Any) -> list[int]:
    text = choices(**changed)
    sampler = Sampler([text], CPU)
    for _ in range(count):
        sampler.sample(LOGITS[None])
    return text.tokens


def shares(tokens: list[int]) -> list[float]:
    counted = Counter(tokens)
    return [counted[token] / len(tokens) for token in range(4)]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """At temperature 1 without top p the model's own distribution is drawn from."""
    assert shares(drawn()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    """Probabilities go with the power 1 / temperature."""
    weights = [0.25, 0.09, 0.0225, 0.0025]
    assert shares(drawn(temperature=0.5)) == pytest.approx([w / sum(weights) for w in weights], abs=0.03)
    assert shares(drawn(temperature=2.0))[3] > 0.08


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_a_vocabulary_in_part_or_in_whole_gives_the_same(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many tokens are sorted is a matter of speed alone."""
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(3)) * 2

    def said() -> list[int]:
        text = choices(top_p=top_p)
        sampler = Sampler([text], CPU)
        for _ in range(300):
            sampler.sample(logits)
        return text.tokens

    part = said()
    monkeypatch.setattr(sampling, "TOP_CANDIDATES", 500)
    assert said() == part
    assert len(set(part)) > 10


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2})])
def test_top_p_keeps_the_fewest_tokens_that_hold_it(top_p: float, kept: set[int]) -> None:
    """The most likely one always stays."""
    tokens = drawn(top_p=top_p)
    assert set(tokens) == kept
    assert shares(tokens)[0] == pytest.approx(0.5 / sum((0.5, 0.3, 0.15)[: len(kept)]), abs=0.03)


def test_temperature_zero_takes_the_likeliest_whatever_the_rest_says() -> None:
    """Greedy needs no random numbers."""
    assert drawn(5, temperature=0.0, uniforms=[]) == [0] * 5


def test_penalties_follow_what_was_generated() -> None:
    """0.5 against 0.3 is 0.51 in logits: one penalty of 0.6 turns them, a frequency penalty goes on."""
    presence = drawn(4, temperature=0.0, uniforms=[], presence_penalty=0.6)
    assert presence == [0, 1, 0, 0]
    frequency = drawn(6, temperature=0.0, uniforms=[], frequency_penalty=0.6)
    assert frequency == [0, 1, 0, 1, 0, 2]
    assert drawn(3, temperature=0.0, uniforms=[], frequency_penalty=-2.0) == [0, 0, 0]


def test_a_text_chooses_the_same_in_company() -> None:
    """Others' temperatures, penalties and random numbers are theirs."""
    alone = drawn(40, temperature=1.3, top_p=0.95, frequency_penalty=0.2)
    text = choices(temperature=1.3, top_p=0.95, frequency_penalty=0.2)
    others = [
        choices(temperature=0.0, uniforms=[]),
        choices(uniforms=[0.1] * 40),
        choices(presence_penalty=2.0),
    ]
    sampler = Sampler([others[0], text, *others[1:]], CPU)
    for _ in range(40):
        sampler.sample(LOGITS.repeat(4, 1))
    assert text.tokens == alone


def test_a_new_sampler_remembers_what_its_texts_said() -> None:
    """A batch changes while texts grow: penalties must not start again."""
    whole = drawn(12, temperature=0.0, uniforms=[], frequency_penalty=0.3)
    text = choices(temperature=0.0, uniforms=[], frequency_penalty=0.3)
    for _ in range(4):
        sampler = Sampler([text], CPU)
        for _ in range(3):
            sampler.sample(LOGITS[None])
    assert text.tokens == whole
