"""Tokens and chunks of a prompt.

The text encoders read 77 tokens at a time: a beginning, up to 75 of the prompt's, an end. Longer prompts
are cut into several such chunks, behind the last whole word that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from ourvidz.prompts.weights import Fragment, Section, WeightedPrompt

CONTEXT = 77
"""Context length of a CLIP text encoder in tokens, start and end tokens included."""
ENDS = 2
WORD_END = "</w>"
LONGEST_PIECE = 256
"""Words longer than this many characters are tokenized in pieces."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One context window: fragments and their tokens, without start, end and padding tokens."""

    fragments: tuple[Fragment, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of fragment number `fragment`, with the space before it. `cut`: it continues a split word."""

    text: str
    tokens: list[str]
    fragment: int
    cut: bool = False


class PromptTokenizer:
    """One of a checkpoint's tokenizers. `context` is the context length of its encoder in tokens."""

    def __init__(self, name: str, tokenizer: Tokenizer, context: int = CONTEXT) -> None:
        self.name = name
        self.context = context
        # A copy: the model libraries switch truncation and padding of theirs on and off.
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text; `</w>` marks the end of a word."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def chunks(self, prompt: WeightedPrompt) -> list[Chunk]:
        """The prompt in chunks of at most `context` - 2 tokens, at least one. Each section begins its own.

        The text of a chunk has exactly its tokens when it is tokenized again, fragment by fragment.
        """
        found = [chunk for section in prompt.sections for chunk in self._chunks(section)]
        return found or [Chunk((Fragment(""),), ())]

    def _chunks(self, section: Section) -> Iterator[Chunk]:
        room = self.context - ENDS
        waiting: list[_Word] = []
        count = 0
        for at, fragment in enumerate(section.fragments):
            for word in self._words(fragment.text, at, room):
                if waiting and (word.cut or count + len(word.tokens) > room):
                    yield _chunk(section, waiting)
                    waiting, count = [], 0
                waiting.append(word)
                count += len(word.tokens)
        if waiting:
            yield _chunk(section, waiting)

    def _words(self, text: str, fragment: int, room: int) -> Iterator[_Word]:
        """Yield the words of a fragment; a word that is longer than a chunk is split."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # Read once: each look at them copies them all.
        found, offsets = encoding.tokens, encoding.offsets
        tokens: list[str] = []
        start = 0
        for index, (token, (_, end)) in enumerate(zip(found, offsets, strict=True), 1):
            tokens.append(token)
            if token.endswith(WORD_END) or index == len(found):
                if len(tokens) > room:
                    yield from self._pieces(text[start:end], fragment, room)
                else:
                    yield _Word(text[start:end], tokens, fragment)
                tokens, start = [], end

    def _pieces(self, text: str, fragment: int, room: int) -> Iterator[_Word]:
        """Split a very long word wherever a chunk is full; its pieces are tokenized separately."""
        cut = False
        while text:
            piece = text[:LONGEST_PIECE]
            while len(tokens := self.tokens(piece)) > room and len(piece) > 1:
                piece = piece[: max(1, len(piece) * room // len(tokens))]
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
