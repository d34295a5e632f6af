"""Choosing the next token of many texts at once, each by its own rules and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ourvidz.jobs.job import ChatJob

GREEDY_BELOW = 1e-4
"""A temperature under this is 0: the division would overflow, and the likeliest token is certain anyway."""
LIKELIEST = 128
"""So many tokens are put in order first: they nearly always hold what is drawn from, and sorting a whole
vocabulary takes longer than a small model's forward pass."""


@dataclass(slots=True)
class Choices:
    """How one text is chosen, and what was chosen so far.

    `draws` are its random numbers, one a token, from 0 to 1: they come from the job's seed alone, so company
    does not change them.
    """

    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    draws: list[float]
    tokens: list[int] = field(default_factory=list)

    @property
    def penalised(self) -> bool:
        """Whether tokens that were chosen before become less or more likely."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0


def choices(job: ChatJob) -> Choices:
    """What a job asks for."""
    greedy = job.temperature < GREEDY_BELOW
    source = torch.Generator().manual_seed(job.seed)
    draws = [] if greedy else torch.rand(job.max_tokens, generator=source).tolist()
    temperature = 0.0 if greedy else job.temperature
    return Choices(temperature, job.top_p, job.frequency_penalty, job.presence_penalty, draws)


class Sampler:
    """Chooses for a fixed set of texts, row by row of their logits. Make a new one when the set changes."""

    def __init__(self, texts: Sequence[Choices], device: torch.device) -> None:
        self._texts = list(texts)
        self._device = device
        self._drawn = any(text.temperature for text in texts)
        self._penalised = any(text.penalised for text in texts)
        self._temperature = self._column([text.temperature for text in texts])
        self._top_p = self._column([text.top_p if text.temperature else 0.0 for text in texts])
        self._frequency = self._column([text.frequency_penalty for text in texts])
        self._presence = self._column([text.presence_penalty for text in texts])
        self._counts: torch.Tensor | None = None

    def choose(self, logits: torch.Tensor) -> list[int]:
        """The next token of every text, from logits of shape (texts, vocabulary); each is noted in its
        `tokens`."""
        logits = logits.float()
        if self._penalised:
            logits = self._penalise(logits)
        best = logits.argmax(-1)
        chosen = torch.where(self._temperature[:, 0] > 0, self._draw(logits), best) if self._drawn else best
        if self._counts is not None:
            self._counts.scatter_add_(1, chosen[:, None], torch.ones_like(self._temperature))
        tokens: list[int] = chosen.tolist()
        for text, token in zip(self._texts, tokens, strict=True):
            text.tokens.append(token)
        return tokens

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """One token a row by its random number; any for greedy rows."""
        temperature = torch.where(self._temperature > 0, self._temperature, 1.0)
        likely = (logits / temperature).softmax(-1)
        numbers = self._column([text.draws[len(text.tokens)] if text.draws else 0.0 for text in self._texts])
        falling, order = likely.topk(min(LIKELIEST, likely.shape[-1]))
        needed = torch.where(self._top_p < 1, self._top_p, numbers)
        if bool((falling.sum(-1, keepdim=True) > needed).all()):
            return _pick(falling, order, self._top_p, numbers, whole=1.0)
        falling, order = likely.sort(descending=True)
        return _pick(falling, order, self._top_p, numbers, whole=falling.sum(-1, keepdim=True))

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        """The OpenAI API's penalties: for every time a token was generated, and once for having been."""
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
            for row, text in enumerate(self._texts):
                seen = torch.tensor(text.tokens, dtype=torch.long, device=self._device)
                self._counts[row].scatter_add_(0, seen, torch.ones(len(seen), device=self._device))
        return logits - self._counts * self._frequency - (self._counts > 0) * self._presence

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]


def _pick(
    falling: torch.Tensor,
    order: torch.Tensor,
    top_p: torch.Tensor,
    numbers: torch.Tensor,
    *,
    whole: torch.Tensor | float,
) -> torch.Tensor:
    """One token a row from the fewest tokens that hold `top_p` of the probability: the first at which the sum
    of their probabilities, in falling order, passes the row's random number.

    `order` are the tokens that the probabilities in `falling` belong to, `whole` is what those of all tokens
    sum up to.
    """
    sums = falling.cumsum(-1)
    kept = (sums - falling < top_p).sum(-1, keepdim=True).clamp(min=1)
    total = torch.where(top_p < 1, sums.gather(1, kept - 1), whole)
    passed = (sums <= numbers * total).sum(-1, keepdim=True)
    return order.gather(1, torch.minimum(passed, kept - 1))[:, 0]
