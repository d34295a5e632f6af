"""Reads the tokenizers and the embedding widths of a checkpoint's two text encoders from its configs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.prompts.clip import read_tokenizer
from ourvidz.prompts.files import read_json
from ourvidz.prompts.tokens import Chunk, PromptTokenizer
from ourvidz.prompts.weights import WeightedPrompt

PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
"""The folders of SDXL's tokenizers and of the encoders that read their tokens."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of prompt embeddings: (1, tokens, sum of both widths), and pooled (1, pooled width)."""

    prompt_embeds: tuple[int, int, int]
    pooled_prompt_embeds: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """Both tokenizers of a checkpoint, the hidden widths of both encoders, and the pooled width."""

    tokenizers: tuple[PromptTokenizer, ...]
    widths: tuple[int, ...]
    pooled_width: int

    def chunks(self, prompt: WeightedPrompt) -> dict[str, list[Chunk]]:
        """The chunks of a prompt by tokenizer name. The two may need a different number."""
        return {tokenizer.name: tokenizer.chunks(prompt) for tokenizer in self.tokenizers}

    def shapes(self, prompts: Iterable[WeightedPrompt]) -> Shapes:
        """The shapes of the embeddings of a job's prompts; all are padded to the longest."""
        longest = max(len(chunks) for prompt in prompts for chunks in self.chunks(prompt).values())
        context = self.tokenizers[0].context
        return Shapes((1, context * longest, sum(self.widths)), (1, self.pooled_width))


@lru_cache(maxsize=4)
def read_encoders(folder: Path) -> TextEncoders:
    """The text encoders of the checkpoint in `folder`, read from its configs and cached.

    Raises `ModelLoadError`, which names the file, if one is missing or damaged.
    """
    tokenizers = tuple(read_tokenizer(folder / name) for name, _ in PAIRS)
    widths = tuple(_number(folder / name / "config.json", "hidden_size") for _, name in PAIRS)
    return TextEncoders(tokenizers, widths, _number(folder / PAIRS[-1][1] / "config.json", "projection_dim"))


def _number(file: Path, name: str) -> int:
    """An integer of a config file. Raises `ModelLoadError` if it is missing."""
    value = read_json(file).get(name)
    if not isinstance(value, int):
        raise ModelLoadError(f"{file} has no {name}.")
    return value
