"""Sampling the next tokens of several texts, each with its own parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ourvidz.pipelines.texts import sampling
from ourvidz.pipelines.texts.sampling import CheckpointSampling, Sampler, SamplingState

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
MANY = 4000


def sampling_state(**changes: Any) -> SamplingState:
    fields: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "uniforms": torch.rand(MANY, generator=torch.Generator().manual_seed(1)).tolist(),
    }
    return SamplingState(**(fields | changes))


def greedy_state(**changes: Any) -> SamplingState:
    return sampling_state(temperature=0.0, uniforms=[], **changes)


def sample(state: SamplingState, count: int = MANY, logits: torch.Tensor = LOGITS[None]) -> list[int]:
    """The first `count` tokens of a text whose logits never change."""
    sampler = Sampler([state], CPU)
    for _ in range(count):
        sampler.sample(logits)
    return state.tokens


def frequencies(tokens: list[int]) -> list[float]:
    counts = Counter(tokens)
    return [counts[token] / len(tokens) for token in range(4)]


def test_tokens_have_the_frequencies_of_their_probabilities() -> None:
    """At temperature 1 without top-p."""
    assert frequencies(sample(sampling_state())) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens_and_flattens_the_distribution() -> None:
    """Probabilities are raised to the power of 1 / temperature."""
    powers = [0.25, 0.09, 0.0225, 0.0025]
    expected = [power / sum(powers) for power in powers]
    assert frequencies(sample(sampling_state(temperature=0.5))) == pytest.approx(expected, abs=0.03)
    assert frequencies(sample(sampling_state(temperature=2.0)))[3] > 0.08


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_sorting_only_the_top_candidates_does_not_change_the_result(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only saves time."""
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(3)) * 2
    tokens = sample(sampling_state(top_p=top_p), 300, logits)
    monkeypatch.setattr(sampling, "TOP_CANDIDATES", 500)
    assert sample(sampling_state(top_p=top_p), 300, logits) == tokens
    assert len(set(tokens)) > 10


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_of_tokens_with_that_probability(top_p: float, kept: set[int]) -> None:
    """The most likely token is always kept."""
    tokens = sample(sampling_state(top_p=top_p))
    assert set(tokens) == kept
    assert frequencies(tokens)[0] == pytest.approx(0.5 / sum((0.5, 0.3, 0.15)[: len(kept)]), abs=0.03)


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_the_top_k_of_a_checkpoint_limits_the_tokens(top_p: float) -> None:
    """Top-p applies to what is left, as in transformers; a k above the vocabulary has no effect."""
    state = sampling_state(top_p=top_p)
    sampler = Sampler([state, greedy_state()], CPU, CheckpointSampling(top_k=2))
    for _ in range(MANY):
        sampler.sample(LOGITS.repeat(2, 1))
    expected = [0.625, 0.375, 0, 0] if top_p == 1 else [1, 0, 0, 0]
    assert frequencies(state.tokens) == pytest.approx(expected, abs=0.03)
    unlimited = sampling_state(top_p=top_p)
    sampler = Sampler([unlimited], CPU, CheckpointSampling(top_k=50))
    for _ in range(40):
        sampler.sample(LOGITS[None])
    assert unlimited.tokens == sample(sampling_state(top_p=top_p), 40)


def test_the_repetition_penalty_of_a_checkpoint_counts_prompt_and_answer() -> None:
    """Once for each token, however often it occurs: the same as in transformers."""
    from transformers import RepetitionPenaltyLogitsProcessor

    processor = RepetitionPenaltyLogitsProcessor(1.4)
    logits = torch.tensor([[2.0, 1.9, 1.6, -0.1, 1.5], [0.4, -0.2, 0.3, 0.2, -1.0]])
    prompts: list[list[int]] = [[3, 0, 0], [4]]
    expected = [list(prompt) for prompt in prompts]
    for _ in range(6):
        rows = [
            processor(torch.tensor([text]), row[None]) for text, row in zip(expected, logits, strict=True)
        ]
        for text, row in zip(expected, rows, strict=True):
            text.append(int(row.argmax()))
    states = [greedy_state(prompt_tokens=prompt) for prompt in prompts]
    for _ in range(2):
        sampler = Sampler(states, CPU, CheckpointSampling(repetition_penalty=1.4))
        for _ in range(3):
            sampler.sample(logits)
    assert [[*state.prompt_tokens, *state.tokens] for state in states] == expected


def test_temperature_0_is_greedy() -> None:
    """It needs no random numbers."""
    assert sample(greedy_state(), 5) == [0] * 5


def test_penalties_depend_on_the_generated_tokens() -> None:
    """The two most likely tokens differ by a logit of 0.51: a presence penalty of 0.6 swaps them once, a
    frequency penalty repeatedly."""
    assert sample(greedy_state(presence_penalty=0.6), 4) == [0, 1, 0, 0]
    assert sample(greedy_state(frequency_penalty=0.6), 6) == [0, 1, 0, 1, 0, 2]
    assert sample(greedy_state(frequency_penalty=-2.0), 3) == [0, 0, 0]


def test_a_text_gets_the_same_tokens_alone_and_in_a_batch() -> None:
    """The parameters and random numbers of other texts do not affect it."""
    parameters = {"temperature": 1.3, "top_p": 0.95, "frequency_penalty": 0.2}
    alone = sample(sampling_state(**parameters), 40)
    text = sampling_state(**parameters)
    others = [greedy_state(), sampling_state(uniforms=[0.1] * 40), sampling_state(presence_penalty=2.0)]
    sampler = Sampler([others[0], text, *others[1:]], CPU)
    for _ in range(40):
        sampler.sample(LOGITS.repeat(4, 1))
    assert text.tokens == alone


def test_a_new_sampler_counts_the_tokens_generated_before() -> None:
    """A batch changes while texts are generated; penalties must not start again."""
    expected = sample(greedy_state(frequency_penalty=0.3), 12)
    text = greedy_state(frequency_penalty=0.3)
    for _ in range(4):
        sample(text, 3)
    assert text.tokens == expected
