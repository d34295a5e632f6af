"""Continuous batching: decodes several texts together, one forward pass per token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from ourvidz.errors import CONTEXT_EXCEEDED, InvalidParameters, OutOfMemory
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.attention import any_length
from ourvidz.pipelines.base import TextDelta
from ourvidz.pipelines.texts.detokenizer import IncrementalDetokenizer
from ourvidz.pipelines.texts.kv_cache import DecodeCache, PrefillCache
from ourvidz.pipelines.texts.qwen_model import QwenModel
from ourvidz.pipelines.texts.sampling import Sampler, SamplingState, sampling_state
from ourvidz.pipelines.texts.stop_strings import StopStringFilter

MAX_PREFILL_TOKENS = 4096
"""Prompt tokens, padding included, that one step prefills; longer prompts take several steps. This bounds the
memory, and the time during which the other texts and cancellations have to wait."""


@dataclass(slots=True, eq=False)
class DecodingText:
    """One text in the batch. `prefilled` counts the tokens of a long prompt that are in the KV cache, while
    it is prefilled in chunks."""

    key: str
    prompt_tokens: list[int]
    max_tokens: int
    sampling: SamplingState
    detokenizer: IncrementalDetokenizer
    stop_filter: StopStringFilter
    prefilled: int = 0

    @property
    def last_token(self) -> int:
        """The newest token, which the next forward pass takes."""
        return self.sampling.tokens[-1] if self.sampling.tokens else self.prompt_tokens[-1]

    @property
    def cached_tokens(self) -> int:
        """The number of tokens in the KV cache after prefill: all but the newest."""
        return len(self.prompt_tokens) + len(self.sampling.tokens) - 1

    @property
    def max_length(self) -> int:
        """The largest number of tokens that the text can have."""
        return len(self.prompt_tokens) + self.max_tokens


@dataclass(slots=True)
class _Batch:
    """The texts in the order of their rows in the KV cache, and a sampler for exactly these."""

    texts: list[DecodingText] = field(default_factory=list)
    sampler: Sampler | None = None


class QwenBatchDecoder:
    """Decodes on a loaded Qwen model; implements `BatchDecoder`. Not thread-safe."""

    def __init__(self, model: QwenModel) -> None:
        self._model = model
        self._cache = model.new_cache()
        self._waiting: list[DecodingText] = []
        self._prefilling: DecodingText | None = None
        """The text whose prompt is prefilled in chunks; its row is the one after the batch."""
        self._batch = _Batch()

    def add(self, key: str, job: ChatJob) -> int:
        """Add a text and return the number of its prompt tokens. Raises `InvalidParameters` if prompt and
        `max_tokens` do not fit the model's context, `ValueError` for a key that is in use."""
        if any(text.key == key for text in self._texts()):
            raise ValueError(f"{key} is in this batch already")
        prompt_tokens = self._model.tokenize(job)
        check_length(len(prompt_tokens), job.max_tokens, self._model.context_length)
        self._waiting.append(
            DecodingText(
                key,
                prompt_tokens,
                job.max_tokens,
                sampling_state(job, prompt_tokens),
                IncrementalDetokenizer(self._model.vocabulary),
                StopStringFilter(job.stop),
            )
        )
        return len(prompt_tokens)

    def step(self) -> list[TextDelta]:
        """Prefill waiting texts, up to `MAX_PREFILL_TOKENS` tokens of them, then decode one token for every
        prefilled text.

        Raises `OutOfMemory`; the texts are unchanged then, and after some are removed the step can be
        repeated.
        """
        try:
            with devices.torch_threads(self._model.threads), torch.inference_mode(), any_length():
                self._prefill()
                tokens = self._decode()
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return self._deltas(tokens)
        # After the except block: until then the error's traceback keeps the tensors alive.
        devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {len(self._texts())} texts at once.")

    def remove(self, key: str) -> None:
        """Remove a text, finished or not. Idempotent."""
        self._waiting = [text for text in self._waiting if text.key != key]
        if self._prefilling is not None and self._prefilling.key == key:
            self._prefilling = None
        for row, text in enumerate(self._batch.texts):
            if text.key == key:
                self._remove_rows([row])
                return

    def _texts(self) -> list[DecodingText]:
        """All texts: those of the batch, the one that is prefilling, and the waiting ones."""
        prefilling = [] if self._prefilling is None else [self._prefilling]
        return [*self._batch.texts, *prefilling, *self._waiting]

    # -- prefill
    def _prefill(self) -> None:
        """Run the model on the prompts of waiting texts, except their last tokens."""
        if self._prefilling is None and self._waiting and self._waiting[0].cached_tokens > MAX_PREFILL_TOKENS:
            self._prefilling = self._waiting.pop(0)
        if self._prefilling is not None:
            self._prefill_chunk(self._prefilling)
        elif group := _first_prefill_group(self._waiting):
            texts = [*self._batch.texts, *group]
            self._reserve(texts)
            self._prefill_group(group, first_row=len(self._batch.texts))
            self._batch = _Batch(texts)
            self._waiting = self._waiting[len(group) :]

    def _reserve(self, texts: list[DecodingText]) -> None:
        self._cache.reserve(len(texts), max(text.max_length for text in texts))

    def _prefill_chunk(self, text: DecodingText) -> None:
        """Prefill the next chunk of a long prompt; after the last one the text joins the batch."""
        texts = [*self._batch.texts, text]
        self._reserve(texts)
        end = min(text.prefilled + MAX_PREFILL_TOKENS, text.cached_tokens)
        tokens = torch.tensor([text.prompt_tokens[text.prefilled : end]], device=self._model.device)
        positions = torch.arange(text.prefilled, end, device=self._model.device)
        cache = PrefillCache(self._cache, len(texts) - 1, cached_tokens=text.prefilled)
        self._model.hidden_states(tokens, positions[None], cache, mask=cache.mask(positions))
        text.prefilled = end
        if end == text.cached_tokens:
            self._batch, self._prefilling = _Batch(texts), None

    def _prefill_group(self, group: list[DecodingText], *, first_row: int) -> None:
        """Prefill several prompts in one pass. Shorter ones are padded at their ends: attention is causal,
        and the padding's columns are overwritten before they are read."""
        longest = max(text.cached_tokens for text in group)
        if longest:
            padded = [text.prompt_tokens[:-1] + [0] * (longest - text.cached_tokens) for text in group]
            tokens = torch.tensor(padded, device=self._model.device)
            positions = torch.arange(longest, device=self._model.device)[None]
            self._model.hidden_states(tokens, positions, PrefillCache(self._cache, first_row), mask=None)

    # -- decode
    def _decode(self) -> list[int]:
        """Sample the next token of every text in the batch, in row order."""
        texts = self._batch.texts
        if not texts:
            return []
        cache = DecodeCache(self._cache, [text.cached_tokens for text in texts], self._model.device)
        tokens = torch.tensor([[text.last_token] for text in texts], device=self._model.device)
        hidden = self._model.hidden_states(tokens, cache.positions[:, None], cache, mask=cache.mask)
        logits = self._model.logits(hidden[:, 0])
        if self._batch.sampler is None:
            states = [text.sampling for text in texts]
            self._batch.sampler = Sampler(states, self._model.device, self._model.sampling)
        return self._batch.sampler.sample(logits)

    def _deltas(self, tokens: list[int]) -> list[TextDelta]:
        """The delta of every text for its new token; removes finished texts."""
        deltas = [self._delta(text, token) for text, token in zip(self._batch.texts, tokens, strict=True)]
        self._remove_rows([row for row, delta in enumerate(deltas) if delta.finish_reason])
        return deltas

    def _delta(self, text: DecodingText, token: int) -> TextDelta:
        """The text delta of a new token, filtered by stop strings; the last one has a finish reason."""
        tokens_generated = len(text.sampling.tokens)
        at_end = token in self._model.end_tokens
        text_delta = "" if at_end else text.stop_filter.feed(text.detokenizer.decode(token))
        finish_reason: Literal["stop", "length"] | None = None
        if at_end or text.stop_filter.stopped:
            finish_reason = "stop"
        elif tokens_generated == text.max_tokens:
            finish_reason = "length"
        if finish_reason:
            text_delta += text.stop_filter.flush()
        return TextDelta(text.key, text_delta, tokens_generated, finish_reason)

    def _remove_rows(self, rows: list[int]) -> None:
        """Remove texts from the batch; the last rows of the KV cache fill the gaps."""
        if not rows:
            return
        texts = list(self._batch.texts)
        for row in reversed(rows):
            self._cache.move(len(texts) - 1, row, texts[-1].cached_tokens)
            texts[row] = texts[-1]
            texts.pop()
        if self._prefilling is not None:
            self._cache.move(len(self._batch.texts), len(texts), self._prefilling.prefilled)
        self._batch = _Batch(texts)
        if not self._texts():
            self._cache = self._model.new_cache()


def check_length(prompt_tokens: int, max_tokens: int, context_length: int) -> None:
    """Raise `InvalidParameters` unless a prompt of this many tokens and `max_tokens` more fit the context."""
    if prompt_tokens == 0:
        raise InvalidParameters("messages must have some text.", field="messages", rule="some text", value="")
    if prompt_tokens >= context_length:
        rule = f"at most {context_length - 1} tokens long"
        raise InvalidParameters(
            f"messages must be {rule} for this model's context; they have {prompt_tokens} tokens.",
            field="messages",
            rule=rule,
            value=prompt_tokens,
            kind=CONTEXT_EXCEEDED,
        )
    if prompt_tokens + max_tokens > context_length:
        limit = context_length - prompt_tokens
        rule = f"at most {limit} after {prompt_tokens} prompt tokens in a context of {context_length}"
        raise InvalidParameters(
            f"max_tokens must be {rule}, not {max_tokens}.",
            field="max_tokens",
            rule=rule,
            value=max_tokens,
            kind=CONTEXT_EXCEEDED,
        )


def _first_prefill_group(texts: list[DecodingText]) -> list[DecodingText]:
    """The first texts that can be prefilled together within `MAX_PREFILL_TOKENS`; at least one."""
    group: list[DecodingText] = []
    longest = 0
    for text in texts:
        longest = max(longest, text.cached_tokens)
        if group and longest * (len(group) + 1) > MAX_PREFILL_TOKENS:
            break
        group.append(text)
    return group
