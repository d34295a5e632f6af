"""Tokens back to characters, as they come.

A token of a byte-level tokenizer is a few bytes, and one character may take several tokens: decoding token
by token with the tokenizer would show half of it.
"""

from __future__ import annotations

import codecs
from typing import Any

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
"""How byte-level tokenizers since GPT-2 write bytes as letters: printable ones of Latin-1 stand for
themselves, the others are counted from U+0100."""


class ByteVocabulary:
    """What every token of a byte-level tokenizer stands for; special ones for nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {
            number: b"" if token.special else token.content.encode()
            for number, token in tokenizer.added_tokens_decoder.items()
        }
        self._known: dict[int, bytes] = dict(self._added)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token; none for the numbers that only pad a model's vocabulary."""
        found = self._known.get(token)
        if found is None:
            written = self._tokenizer.convert_ids_to_tokens(token) or ""
            found = self._known[token] = bytes(_BYTE_OF[letter] for letter in written)
        return found


class IncrementalDetokenizer:
    """One text that is spelt token by token: whole characters only."""

    def __init__(self, alphabet: ByteVocabulary) -> None:
        self._alphabet = alphabet
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def spell(self, token: int) -> str:
        """The characters that are complete with this token. Bytes that can become none read U+FFFD."""
        return self._decoder.decode(self._alphabet.bytes_of(token))
