"""Incremental detokenization: token ids to complete characters.

A token of a byte-level tokenizer is a few bytes, and a character may take several tokens. Decoding each token
with the tokenizer would show incomplete characters.
"""

from __future__ import annotations

import codecs
from typing import Any

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + index): byte for index, byte in enumerate(_OTHERS)
}
"""The byte-to-letter map of byte-level tokenizers since GPT-2, reversed: printable Latin-1 characters stand
for themselves, the other bytes for the characters from U+0100 on."""


class ByteVocabulary:
    """The bytes of every token of a byte-level tokenizer; none for special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in tokenizer.added_tokens_decoder.items()
        }

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token; none for ids that only pad the model's vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            letters = self._tokenizer.convert_ids_to_tokens(token_id) or ""
            known = self._bytes[token_id] = bytes(_BYTE_OF[letter] for letter in letters)
        return known


class IncrementalDetokenizer:
    """Decodes one text token by token into complete characters."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, token_id: int) -> str:
        """The characters that this token completes. Invalid UTF-8 becomes U+FFFD."""
        return self._decoder.decode(self._vocabulary.bytes_of(token_id))
