"""Tokens and chunks of a prompt.

A CLIP text encoder takes 77 tokens: a start token, up to 75 prompt tokens and an end token. Longer prompts
are split into several chunks at word boundaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ourvidz.prompts.weights import Fragment, Section, WeightedPrompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT = 77
"""Context length of a CLIP text encoder in tokens, start and end tokens included."""
SPECIAL_TOKENS = 2
"""Start and end token of a chunk."""
WORD_END = "</w>"
LONGEST_PIECE = 256
"""Maximum length in characters of a piece of a split word."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One context window: fragments and their tokens, without start, end and padding tokens."""

    fragments: tuple[Fragment, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Word:
    """A word with its leading space; `fragment` is its fragment's index. `cut`: continues a split word."""

    text: str
    tokens: list[str]
    fragment: int
    cut: bool = False


class PromptTokenizer:
    """One of a checkpoint's tokenizers. `context` is the context length of its encoder in tokens."""

    def __init__(self, name: str, tokenizer: Tokenizer, context: int = CONTEXT) -> None:
        self.name = name
        self.context = context
        # A copy, because the model libraries change truncation and padding of the shared tokenizer.
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text; `</w>` marks the end of a word."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def chunks(self, prompt: WeightedPrompt) -> list[Chunk]:
        """Split a prompt into at least one chunk of at most `context` - 2 tokens. Sections start new chunks.

        Tokenizing the fragments of a chunk again yields exactly its tokens.
        """
        chunks = [chunk for section in prompt.sections for chunk in self._chunks(section)]
        return chunks or [Chunk((Fragment(""),), ())]

    def _chunks(self, section: Section) -> Iterator[Chunk]:
        """Yield the chunks of a section; no word is split over two chunks, unless it is longer than one."""
        max_tokens = self.context - SPECIAL_TOKENS
        pending: list[_Word] = []
        count = 0
        for at, fragment in enumerate(section.fragments):
            for word in self._words(fragment.text, at, max_tokens):
                if pending and (word.cut or count + len(word.tokens) > max_tokens):
                    yield _chunk(section, pending)
                    pending, count = [], 0
                pending.append(word)
                count += len(word.tokens)
        if pending:
            yield _chunk(section, pending)

    def _words(self, text: str, fragment: int, max_tokens: int) -> Iterator[_Word]:
        """Yield the words of a fragment; a word that is longer than a chunk is split."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # Each access of these properties copies the whole list.
        all_tokens, offsets = encoding.tokens, encoding.offsets
        tokens: list[str] = []
        start = 0
        for index, (token, (_, end)) in enumerate(zip(all_tokens, offsets, strict=True), 1):
            tokens.append(token)
            if token.endswith(WORD_END) or index == len(all_tokens):
                if len(tokens) > max_tokens:
                    yield from self._pieces(text[start:end], fragment, max_tokens)
                else:
                    yield _Word(text[start:end], tokens, fragment)
                tokens, start = [], end

    def _pieces(self, text: str, fragment: int, max_tokens: int) -> Iterator[_Word]:
        """Split a word that exceeds a chunk into pieces that fit; each piece is tokenized separately."""
        cut = False
        while text:
            piece = text[:LONGEST_PIECE]
            while len(tokens := self.tokens(piece)) > max_tokens and len(piece) > 1:
                piece = piece[: max(1, len(piece) * max_tokens // len(tokens))]
            yield _Word(piece, tokens, fragment, cut)
            text, cut = text[len(piece) :], True


def _chunk(section: Section, words: Iterable[_Word]) -> Chunk:
    """Build a chunk from words of a section; words of one fragment are joined."""
    texts: dict[int, str] = {}
    tokens: list[str] = []
    for word in words:
        texts[word.fragment] = texts.get(word.fragment, "") + word.text
        tokens += word.tokens
    fragments = (Fragment(text, section.fragments[at].weight) for at, text in texts.items())
    return Chunk(tuple(fragments), tuple(tokens))
