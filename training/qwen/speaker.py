"""An exported folder that is loaded and generates, by transformers alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from training.qwen.corpus import Text
from training.qwen.talk import Message
from training.qwen.tokens import IGNORED, padded, text_example

BATCH = 25


class Speaker:
    """A loaded variant; `load_s` is how long loading took after the imports, in seconds."""

    def __init__(self, folder: Path) -> None:
        kinds: tuple[Any, Any] = (transformers.Qwen2Tokenizer, transformers.Qwen2ForCausalLM)
        started = time.perf_counter()
        self.words: Any = kinds[0].from_pretrained(folder, padding_side="left")
        model: Any = kinds[1].from_pretrained(folder, dtype=torch.float32)
        self.model = model.eval()
        self.load_s = time.perf_counter() - started

    def answers(
        self, talks: Sequence[Sequence[Message]], *, temperature: float = 0.0, longest: int = 120
    ) -> list[str]:
        """What the assistant says next in every conversation."""
        asked = [
            str(self.words.apply_chat_template(list(talk), tokenize=False, add_generation_prompt=True))
            for talk in talks
        ]
        return self.completions(asked, temperature=temperature, longest=longest)

    def completions(self, texts: Sequence[str], *, temperature: float = 0.0, longest: int = 120) -> list[str]:
        """How every text goes on; greedy at temperature 0."""
        return [text for part in self._parts(texts, temperature, longest) for text in part]

    @torch.no_grad()
    def _parts(self, texts: Sequence[str], temperature: float, longest: int) -> Iterator[list[str]]:
        how = {"do_sample": True, "temperature": temperature, "top_p": 0.9} if temperature else {}
        for at in range(0, len(texts), BATCH):
            given = self.words(list(texts[at : at + BATCH]), return_tensors="pt", padding=True)
            made = self.model.generate(**given, max_new_tokens=longest, **how)
            yield self.words.batch_decode(made[:, given.input_ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def surprise(self, text: Text) -> tuple[float, int]:
        """Minus the logarithm of the probability of what is learnt of a text, and how many tokens that are.

        The end counts; the very first token of a text is given.
        """
        ids, labels = padded([text_example(self.words, text)], pad=0)
        logits = self.model(input_ids=ids).logits[0, :-1]
        lost = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=IGNORED)
        return lost.item(), int((labels[0, 1:] != IGNORED).sum())

    @torch.no_grad()
    def seconds(self, text: str, tokens: int = 64) -> float:
        """How long `tokens` tokens take after a first time."""
        given = self.words(text, return_tensors="pt")
        for _ in range(2):
            started = time.perf_counter()
            self.model.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens)
        return time.perf_counter() - started
