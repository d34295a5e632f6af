"""Samples the next token of several texts at once, each with its own parameters and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ourvidz.jobs.job import ChatJob

GREEDY_BELOW = 1e-4
"""A lower temperature is treated as 0: the division would overflow, and the most likely token is certain."""
TOP_CANDIDATES = 128
"""Sampling sorts only this many tokens first: they almost always contain the sampled one, and sorting a whole
vocabulary takes longer than a small model's forward pass."""


@dataclass(frozen=True, slots=True)
class CheckpointSampling:
    """What a checkpoint's generation config adds to the sampling of every text.

    `repetition_penalty` divides the positive logits of all tokens that the text has, prompt included, and
    multiplies the negative ones; 1 has no effect. `top_k` is the number of most likely tokens that are
    sampled from; None is all.
    """

    repetition_penalty: float = 1.0
    top_k: int | None = None


NO_CHECKPOINT_SAMPLING = CheckpointSampling()


@dataclass(slots=True)
class SamplingState:
    """The sampling parameters of one text, its `prompt_tokens`, and the `tokens` generated so far.

    `uniforms` are random numbers from 0 to 1, one per token. They depend on the job's seed alone, so the
    other texts of a batch do not change the result. `temperature` 0 is greedy.
    """

    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    uniforms: list[float]
    prompt_tokens: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)

    @property
    def penalised(self) -> bool:
        """Whether tokens that were generated before become less or more likely."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0


def sampling_state(job: ChatJob, prompt_tokens: Sequence[int]) -> SamplingState:
    """The initial state for a job with this prompt."""
    greedy = job.temperature < GREEDY_BELOW
    generator = torch.Generator().manual_seed(job.seed)
    uniforms = [] if greedy else torch.rand(job.max_tokens, generator=generator).tolist()
    temperature = 0.0 if greedy else job.temperature
    return SamplingState(
        temperature, job.top_p, job.frequency_penalty, job.presence_penalty, uniforms, prompt_tokens
    )


class Sampler:
    """Samples for a fixed list of texts, in the row order of their logits. A different list needs a new
    sampler."""

    def __init__(
        self,
        texts: Sequence[SamplingState],
        device: torch.device,
        checkpoint: CheckpointSampling = NO_CHECKPOINT_SAMPLING,
    ) -> None:
        self._texts = list(texts)
        self._checkpoint = checkpoint
        self._device = device
        self._any_random = any(text.temperature for text in texts)
        self._any_penalised = any(text.penalised for text in texts)
        self._temperature = self._column([text.temperature for text in texts])
        self._top_p = self._column([text.top_p if text.temperature else 0.0 for text in texts])
        self._frequency_penalty = self._column([text.frequency_penalty for text in texts])
        self._presence_penalty = self._column([text.presence_penalty for text in texts])
        self._counts: torch.Tensor | None = None
        """How often each token was generated, (texts, vocabulary); None without penalties."""
        self._present: torch.Tensor | None = None
        """Whether each token is in the text, prompt included, (texts, vocabulary); None without a repetition
        penalty."""

    def sample(self, logits: torch.Tensor) -> list[int]:
        """Sample the next token of every text from logits (texts, vocabulary), and append it to the text's
        `tokens`."""
        logits = logits.float()
        if self._checkpoint.repetition_penalty != 1:
            logits = self._penalise_repetitions(logits)
        if self._any_penalised:
            logits = self._penalise(logits)
        sampled = logits.argmax(-1)
        if self._any_random:
            sampled = torch.where(self._temperature[:, 0] > 0, self._sample_random(logits), sampled)
        if self._counts is not None:
            self._counts.scatter_add_(1, sampled[:, None], torch.ones_like(self._temperature))
        if self._present is not None:
            self._present.scatter_(1, sampled[:, None], True)
        tokens: list[int] = sampled.tolist()
        for text, token in zip(self._texts, tokens, strict=True):
            text.tokens.append(token)
        return tokens

    def _sample_random(self, logits: torch.Tensor) -> torch.Tensor:
        """One token per row, (texts,), by temperature, top-k and top-p. The tokens of greedy rows are
        arbitrary."""
        temperature = torch.where(self._temperature > 0, self._temperature, 1.0)
        uniforms = self._column(
            [text.uniforms[len(text.tokens)] if text.uniforms else 0.0 for text in self._texts]
        )
        top_k = self._checkpoint.top_k
        if top_k is not None and top_k < logits.shape[-1]:
            top, order = logits.topk(top_k)
            top = (top / temperature).softmax(-1)
            return _sample_top_p(top, order, self._top_p, uniforms, total=top.sum(-1, keepdim=True))
        probabilities = (logits / temperature).softmax(-1)
        top, order = probabilities.topk(min(TOP_CANDIDATES, probabilities.shape[-1]))
        needed = torch.where(self._top_p < 1, self._top_p, uniforms)
        if bool((top.sum(-1, keepdim=True) > needed).all()):
            return _sample_top_p(top, order, self._top_p, uniforms, total=1.0)
        top, order = probabilities.sort(descending=True)
        return _sample_top_p(top, order, self._top_p, uniforms, total=top.sum(-1, keepdim=True))

    def _penalise_repetitions(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the checkpoint's repetition penalty."""
        if self._present is None:
            self._present = torch.zeros_like(logits, dtype=torch.bool)
            for row, text in enumerate(self._texts):
                tokens = [*text.prompt_tokens, *text.tokens]
                self._present[row, torch.tensor(tokens, dtype=torch.long, device=self._device)] = True
        penalty = self._checkpoint.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        return torch.where(self._present, penalised, logits)

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        """Subtract the OpenAI API's penalties: `frequency_penalty` times the number of occurrences, and
        `presence_penalty` once."""
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
            for row, text in enumerate(self._texts):
                generated = torch.tensor(text.tokens, dtype=torch.long, device=self._device)
                ones = torch.ones(len(generated), device=self._device)
                self._counts[row].scatter_add_(0, generated, ones)
        present = self._counts > 0
        return logits - self._counts * self._frequency_penalty - present * self._presence_penalty

    def _column(self, values: list[float]) -> torch.Tensor:
        """(texts, 1)."""
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]


def _sample_top_p(
    probabilities: torch.Tensor,
    order: torch.Tensor,
    top_p: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    total: torch.Tensor | float,
) -> torch.Tensor:
    """One token per row from the smallest set of tokens with `top_p` of the probability: the first one at
    which the cumulative probability exceeds the row's random number.

    `probabilities` fall along each row, `order` are their tokens, both (rows, candidates). `top_p` and
    `uniforms` are (rows, 1). `total` is the probability of the whole vocabulary.
    """
    cumulative = probabilities.cumsum(-1)
    nucleus_size = (cumulative - probabilities < top_p).sum(-1, keepdim=True).clamp(min=1)
    mass = torch.where(top_p < 1, cumulative.gather(1, nucleus_size - 1), total)
    index = (cumulative <= uniforms * mass).sum(-1, keepdim=True)
    return order.gather(1, torch.minimum(index, nucleus_size - 1))[:, 0]
