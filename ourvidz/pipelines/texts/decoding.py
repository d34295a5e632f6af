"""Texts that grow together on one model: a forward pass gives every one of them its next token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from ourvidz.errors import CONTEXT_EXCEEDED, InvalidParameters, OutOfMemory
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import TextDelta
from ourvidz.pipelines.texts.kv_cache import Going, Opening
from ourvidz.pipelines.texts.sampling import Choices, Sampler, choices
from ourvidz.pipelines.texts.spelling import IncrementalDetokenizer
from ourvidz.pipelines.texts.stopping import StopStringFilter
from ourvidz.pipelines.texts.warm_qwen import WarmQwen

PREFILL_TOKENS = 4096
"""So many at once when texts begin, a longer one by and by: padding and memory stay bounded, and so does the
time in which nobody's cancel is heard and the others stand still."""


@dataclass(slots=True, eq=False)
class Text:
    """One text of a batch. `prompt` are its tokens as it came."""

    key: str
    prompt: list[int]
    most: int
    chosen: Choices
    speller: IncrementalDetokenizer
    screen: StopStringFilter
    read: int = 0
    """How much of a long prompt the model has seen so far; unused otherwise."""

    @property
    def last(self) -> int:
        """The token that the next one follows."""
        return self.chosen.tokens[-1] if self.chosen.tokens else self.prompt[-1]

    @property
    def seen(self) -> int:
        """How many tokens the model has seen: all but the last."""
        return len(self.prompt) + len(self.chosen.tokens) - 1

    @property
    def columns(self) -> int:
        """How many it can ever have seen."""
        return len(self.prompt) + self.most


@dataclass(slots=True)
class _Batch:
    """The texts in the order of their rows, and what holds as long as these are in."""

    texts: list[Text] = field(default_factory=list)
    sampler: Sampler | None = None


class QwenBatchDecoder:
    """A batch on a warm model; implements `BatchDecoder`. One thread at a time."""

    def __init__(self, warm: WarmQwen) -> None:
        self._warm = warm
        self._cache = warm.cache()
        self._waiting: list[Text] = []
        self._reading: Text | None = None
        """A long text, whose row is the one after the batch's."""
        self._batch = _Batch()

    def add(self, key: str, job: ChatJob) -> int:
        """Take in one more text; the number of its prompt tokens. `InvalidParameters` when prompt and
        `max_tokens` do not fit the model's context; `ValueError` for a key that is in already."""
        if any(text.key == key for text in self._texts()):
            raise ValueError(f"{key} is in this batch already")
        prompt = self._warm.tokens(job)
        check_length(len(prompt), job.max_tokens, self._warm.context)
        speller, screen = IncrementalDetokenizer(self._warm.alphabet), StopStringFilter(job.stop)
        self._waiting.append(Text(key, prompt, job.max_tokens, choices(job), speller, screen))
        return len(prompt)

    def step(self) -> list[TextDelta]:
        """One token more for every text that is in and not finished; when many join at once, for the first
        few, and a few more with every step. A long text begins after some steps.

        After `OutOfMemory` every text is where it was: with fewer of them the step can be tried again.
        """
        try:
            with devices.threads(self._warm.threads), torch.inference_mode():
                self._admit()
                tokens = self._next()
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return self._pieces(tokens)
        # Only here, after the except block: its traceback held the tensors that are to be freed.
        devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {len(self._texts())} texts at once.")

    def remove(self, key: str) -> None:
        """Take a text out, finished or not. Safe to call twice."""
        self._waiting = [text for text in self._waiting if text.key != key]
        if self._reading is not None and self._reading.key == key:
            self._reading = None
        for row, text in enumerate(self._batch.texts):
            if text.key == key:
                self._drop([row])
                return

    def _texts(self) -> list[Text]:
        reading = [] if self._reading is None else [self._reading]
        return [*self._batch.texts, *reading, *self._waiting]

    # -- newcomers
    def _admit(self) -> None:
        """Let the model see those who wait, but for their last tokens; of many, the first few."""
        if self._reading is None and self._waiting and self._waiting[0].seen > PREFILL_TOKENS:
            self._reading = self._waiting.pop(0)
        if self._reading is not None:
            self._read_on(self._reading)
        elif group := _first_group(self._waiting):
            texts = [*self._batch.texts, *group]
            self._reserve(texts)
            self._open(group, first=len(self._batch.texts))
            self._batch = _Batch(texts)
            self._waiting = self._waiting[len(group) :]

    def _reserve(self, texts: list[Text]) -> None:
        self._cache.reserve(len(texts), max(text.columns for text in texts))

    def _read_on(self, text: Text) -> None:
        """The next stretch of a long text; after the last one it is in."""
        texts = [*self._batch.texts, text]
        self._reserve(texts)
        until = min(text.read + PREFILL_TOKENS, text.seen)
        numbers = torch.tensor([text.prompt[text.read : until]], device=self._warm.device)
        positions = torch.arange(text.read, until, device=self._warm.device)
        opening = Opening(self._cache, len(texts) - 1, begun=text.read)
        self._warm.hidden(numbers, positions[None], opening, mask=opening.mask(positions))
        text.read = until
        if until == text.seen:
            self._batch, self._reading = _Batch(texts), None

    def _open(self, group: list[Text], *, first: int) -> None:
        """Shorter texts are padded at their ends: nothing looks forward, and the padding's columns are
        written over before they are read."""
        longest = max(text.seen for text in group)
        if longest:
            padded = [text.prompt[:-1] + [0] * (longest - text.seen) for text in group]
            numbers = torch.tensor(padded, device=self._warm.device)
            positions = torch.arange(longest, device=self._warm.device)[None]
            self._warm.hidden(numbers, positions, Opening(self._cache, first), mask=None)

    # -- one token for each
    def _next(self) -> list[int]:
        texts = self._batch.texts
        if not texts:
            return []
        going = Going(self._cache, [text.seen for text in texts], self._warm.device)
        numbers = torch.tensor([[text.last] for text in texts], device=self._warm.device)
        hidden = self._warm.hidden(numbers, going.positions[:, None], going, mask=going.mask)
        logits = self._warm.logits(hidden[:, 0])
        if self._batch.sampler is None:
            self._batch.sampler = Sampler([text.chosen for text in texts], self._warm.device)
        return self._batch.sampler.choose(logits)

    def _pieces(self, tokens: list[int]) -> list[TextDelta]:
        pieces = [self._piece(text, token) for text, token in zip(self._batch.texts, tokens, strict=True)]
        self._drop([row for row, piece in enumerate(pieces) if piece.finish_reason])
        return pieces

    def _piece(self, text: Text, token: int) -> TextDelta:
        made = len(text.chosen.tokens)
        ended = token in self._warm.ends
        shown = "" if ended else text.screen.show(text.speller.spell(token))
        finish: Literal["stop", "length"] | None = None
        if ended or text.screen.ended:
            finish = "stop"
        elif made == text.most:
            finish = "length"
        if finish:
            shown += text.screen.rest()
        return TextDelta(text.key, shown, made, finish)

    def _drop(self, rows: list[int]) -> None:
        """Take rows out; the last ones fill the gaps."""
        if not rows:
            return
        texts = list(self._batch.texts)
        for row in reversed(rows):
            self._cache.move(len(texts) - 1, row, texts[-1].seen)
            texts[row] = texts[-1]
            texts.pop()
        if self._reading is not None:
            self._cache.move(len(self._batch.texts), len(texts), self._reading.read)
        self._batch = _Batch(texts)
        if not self._texts():
            self._cache = self._warm.cache()


def check_length(prompt: int, most: int, context: int) -> None:
    """`InvalidParameters` unless a prompt of so many tokens and `most` tokens more fit the context."""
    if prompt == 0:
        raise InvalidParameters("messages must have some text.", field="messages", rule="some text", value="")
    if prompt >= context:
        rule = f"at most {context - 1} tokens long"
        raise InvalidParameters(
            f"messages must be {rule} for this model's context; they have {prompt} tokens.",
            field="messages",
            rule=rule,
            value=prompt,
            kind=CONTEXT_EXCEEDED,
        )
    if prompt + most > context:
        rule = f"at most {context - prompt} after {prompt} prompt tokens in a context of {context}"
        raise InvalidParameters(
            f"max_tokens must be {rule}, not {most}.",
            field="max_tokens",
            rule=rule,
            value=most,
            kind=CONTEXT_EXCEEDED,
        )


def _first_group(texts: list[Text]) -> list[Text]:
    """The first of them: as many as `PREFILL_TOKENS` allow, and at least one."""
    group: list[Text] = []
    longest = 0
    for text in texts:
        longest = max(longest, text.seen)
        if group and longest * (len(group) + 1) > PREFILL_TOKENS:
            break
        group.append(text)
    return group
