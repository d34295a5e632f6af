"""Text generation with an exported folder, through transformers alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from training.qwen.corpus import Text
from training.qwen.dialogues import Message
from training.qwen.tokenization import IGNORED, pad_batch, text_example

BATCH = 25
TOP_P = 0.9


class TextGenerator:
    """A loaded variant of tiny-qwen; `load_s` is the time that loading took, in seconds."""

    def __init__(self, folder: Path) -> None:
        classes: tuple[Any, Any] = (transformers.Qwen2Tokenizer, transformers.Qwen2ForCausalLM)
        started = time.perf_counter()
        self.tokenizer: Any = classes[0].from_pretrained(folder, padding_side="left")
        model: Any = classes[1].from_pretrained(folder, dtype=torch.float32)
        self.model = model.eval()
        self.load_s = time.perf_counter() - started

    def chat(
        self, dialogues: Sequence[Sequence[Message]], *, temperature: float = 0.0, max_tokens: int = 120
    ) -> list[str]:
        """The assistant's next message in every conversation."""
        texts = [
            str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            )
            for messages in dialogues
        ]
        return self.complete(texts, temperature=temperature, max_tokens=max_tokens)

    def complete(self, texts: Sequence[str], *, temperature: float = 0.0, max_tokens: int = 120) -> list[str]:
        """The completion of every text; greedy at temperature 0."""
        return [text for batch in self._batches(texts, temperature, max_tokens) for text in batch]

    @torch.no_grad()
    def _batches(self, texts: Sequence[str], temperature: float, max_tokens: int) -> Iterator[list[str]]:
        """Yield the generated texts in batches."""
        sampling = {"do_sample": True, "temperature": temperature, "top_p": TOP_P} if temperature else {}
        for start in range(0, len(texts), BATCH):
            inputs = self.tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True)
            ids = self.model.generate(**inputs, max_new_tokens=max_tokens, **sampling)
            yield self.tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def negative_log_likelihood(self, text: Text) -> tuple[float, int]:
        """The sum over the completion's tokens, in nats, and the number of tokens. The end token counts; the
        first token of a text without context does not."""
        ids, labels = pad_batch([text_example(self.tokenizer, text)], pad_id=0)
        logits = self.model(input_ids=ids).logits[0, :-1]
        nats = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=IGNORED)
        return nats.item(), int((labels[0, 1:] != IGNORED).sum())

    @torch.no_grad()
    def generation_seconds(self, text: str, tokens: int = 64) -> float:
        """The time that `tokens` tokens take, after one warm-up."""
        inputs = self.tokenizer(text, return_tensors="pt")
        for _ in range(2):
            started = time.perf_counter()
            self.model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)
        return time.perf_counter() - started
