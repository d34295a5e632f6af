"""Incremental detokenization with the packaged tokenizer."""

from __future__ import annotations

import pytest
import transformers

from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.detokenizer import ByteVocabulary, IncrementalDetokenizer

TEXTS = ("a red circle", "  two  spaces\n\nand lines", "naïve übung — 日本語 🦊🌄", "tab\there")


@pytest.fixture(scope="module")
def tokenizer() -> transformers.Qwen2Tokenizer:
    return transformers.Qwen2Tokenizer.from_pretrained(find_qwen(None, "instruct").path)


def detokenize(tokenizer: transformers.Qwen2Tokenizer, tokens: list[int]) -> list[str]:
    """The characters that each token completes."""
    detokenizer = IncrementalDetokenizer(ByteVocabulary(tokenizer))
    return [detokenizer.decode(token) for token in tokens]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_token_by_token_gives_the_tokenized_text(
    tokenizer: transformers.Qwen2Tokenizer, text: str
) -> None:
    """The same as decoding all tokens at once."""
    assert "".join(detokenize(tokenizer, tokenizer(text).input_ids)) == text


def test_an_incomplete_character_is_never_returned(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """A streamed text must be valid at any moment."""
    tokens = tokenizer("🦊").input_ids
    assert len(tokens) > 1
    assert detokenize(tokenizer, tokens) == [*[""] * (len(tokens) - 1), "🦊"]


def test_special_tokens_and_padding_ids_have_no_bytes(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """A model may have more token ids than its tokenizer."""
    vocabulary = ByteVocabulary(tokenizer)
    token_ids = (*tokenizer.all_special_ids, len(tokenizer) + 7)
    assert [vocabulary.bytes_of(token_id) for token_id in token_ids] == [b""] * 4


def test_invalid_bytes_become_the_replacement_character(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """The text after them is decoded."""
    half, letter = tokenizer("🦊").input_ids[0], tokenizer("a").input_ids[0]
    text = "".join(detokenize(tokenizer, [half, letter]))
    assert text.endswith("a")
    assert "\ufffd" in text
