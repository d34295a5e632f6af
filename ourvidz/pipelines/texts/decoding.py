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
    """One text. `prefilled` counts the tokens of a long prompt that are in the KV cache, while it is
    prefilled in chunks."""

    key: str
    prompt_tokens: list[int]
    max_tokens: int
    sampling: SamplingState
    detokenizer: IncrementalDetokenizer
    stop_filter: StopStringFilter
    prefilled: int = 0

    @property
    def last_token(self) -> int:
        """The newest token of a text in the batch, which the next forward pass takes."""
        return self.sampling.tokens[-1]

    @property
    def cached_tokens(self) -> int:
        """The number of tokens in the KV cache of a text in the batch: all but the newest."""
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
        """Decode one token for every text of the batch, and prefill waiting texts, up to
        `MAX_PREFILL_TOKENS` tokens of them: the prefill of a prompt yields its text's first token.

        Raises `OutOfMemory`; the texts are unchanged then, and after some are removed the step can be
        repeated.
        """
        try:
            with devices.torch_threads(self._model.threads), torch.inference_mode(), any_length():
                tokens = self._next_tokens()
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

    def _next_tokens(self) -> list[int]:
        """Sample the next token of every text in the batch, and the first one of those that join it, in row
        order."""
        joining, states = self._prefill()
        texts = [*self._batch.texts, *joining]
        if not texts:
            return []
        hidden = torch.cat([self._decode(), *states]) if self._batch.texts else torch.cat(states)
        sampler = self._batch.sampler
        if sampler is None or joining:
            sampler = Sampler([text.sampling for text in texts], self._model.device, self._model.sampling)
        tokens = sampler.sample(self._model.logits(hidden))
        self._waiting = [text for text in self._waiting if text not in joining]
        if self._prefilling in joining:
            self._prefilling = None
        self._batch = _Batch(texts, sampler)
        return tokens

    # -- prefill
    def _prefill(self) -> tuple[list[DecodingText], list[torch.Tensor]]:
        """Run the model on the prompts of waiting texts. Returns those that are complete, which take the rows
        after the batch, and the hidden states of their last tokens, (texts, width) each."""
        if (
            self._prefilling is None
            and self._waiting
            and len(self._waiting[0].prompt_tokens) > MAX_PREFILL_TOKENS
        ):
            self._prefilling = self._waiting.pop(0)
        if self._prefilling is not None:
            self._reserve([self._prefilling])
            hidden = self._prefill_chunk(self._prefilling)
            return ([], []) if hidden is None else ([self._prefilling], [hidden])
        group = _first_prefill_group(self._waiting)
        if not group:
            return [], []
        self._reserve(group)
        return group, [self._prefill_group(group)]

    def _reserve(self, joining: list[DecodingText]) -> None:
        texts = [*self._batch.texts, *joining]
        self._cache.reserve(len(texts), max(text.max_length for text in texts))

    def _prefill_chunk(self, text: DecodingText) -> torch.Tensor | None:
        """Prefill the next chunk of a long prompt. Returns the hidden state of the prompt's last token,
        (1, width), None before the last chunk."""
        end = min(text.prefilled + MAX_PREFILL_TOKENS, len(text.prompt_tokens))
        tokens = torch.tensor([text.prompt_tokens[text.prefilled : end]], device=self._model.device)
        positions = torch.arange(text.prefilled, end, device=self._model.device)
        cache = PrefillCache(self._cache, len(self._batch.texts), cached_tokens=text.prefilled)
        hidden = self._model.hidden_states(tokens, positions[None], cache, mask=cache.mask(positions))
        if end == len(text.prompt_tokens):
            # Not noted as prefilled: the step can still fail, and be repeated.
            return hidden[:, -1]
        text.prefilled = end
        return None

    def _prefill_group(self, group: list[DecodingText]) -> torch.Tensor:
        """Prefill several prompts in one pass. Shorter ones are padded at their ends: attention is causal,
        and the padding's columns are overwritten before they are read. Returns the hidden states of the last
        tokens."""
        lengths = [len(text.prompt_tokens) for text in group]
        padded = [text.prompt_tokens + [0] * (max(lengths) - len(text.prompt_tokens)) for text in group]
        tokens = torch.tensor(padded, device=self._model.device)
        positions = torch.arange(max(lengths), device=self._model.device)[None]
        cache = PrefillCache(self._cache, len(self._batch.texts))
        hidden = self._model.hidden_states(tokens, positions, cache, mask=None)
        last = torch.tensor(lengths, device=self._model.device) - 1
        return hidden[torch.arange(len(group), device=self._model.device), last]

    # -- decode
    def _decode(self) -> torch.Tensor:
        """Run the model on the newest token of every text in the batch. Returns the hidden states, (texts,
        width), in row order."""
        texts = self._batch.texts
        cache = DecodeCache(self._cache, [text.cached_tokens for text in texts], self._model.device)
        tokens = torch.tensor([[text.last_token] for text in texts], device=self._model.device)
        hidden = self._model.hidden_states(tokens, cache.positions[:, None], cache, mask=cache.mask)
        return hidden[:, 0]

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
        longest = max(longest, len(text.prompt_tokens))
        if group and longest * (len(group) + 1) > MAX_PREFILL_TOKENS:
            break
        group.append(text)
    return group
