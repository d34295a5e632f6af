"""Characters from tokens, with the tokenizer that ships."""

from __future__ import annotations

import pytest
import transformers

from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.detokenizer import ByteVocabulary, IncrementalDetokenizer

TEXTS = ("a red circle", "  two  spaces\n\nand lines", "naïve übung — 日本語 🦊🌄", "tab\there")


@pytest.fixture(scope="module")
def tokenizer() -> transformers.Qwen2Tokenizer:
    return transformers.Qwen2Tokenizer.from_pretrained(find_qwen(None, "instruct").path)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_text_they_were_made_of(tokenizer: transformers.Qwen2Tokenizer, text: str) -> None:
    """TextDelta by piece it is the same text as all at once."""
    speller = IncrementalDetokenizer(ByteVocabulary(tokenizer))
    assert "".join(speller.decode(token) for token in tokenizer(text).input_ids) == text


def test_half_a_character_is_never_shown(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """A stream of text must be valid text at any moment."""
    tokens = tokenizer("🦊").input_ids
    speller = IncrementalDetokenizer(ByteVocabulary(tokenizer))
    assert len(tokens) > 1
    assert [speller.decode(token) for token in tokens] == ["", *[""] * (len(tokens) - 2), "🦊"]


def test_special_tokens_and_padded_numbers_spell_nothing(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """They are the model's, not the text's; a model may have more numbers than its tokenizer."""
    alphabet = ByteVocabulary(tokenizer)
    assert [alphabet.bytes_of(token) for token in (*tokenizer.all_special_ids, len(tokenizer) + 7)] == [
        b""
    ] * 4


def test_bytes_that_are_no_character_read_as_one_that_says_so(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """What follows them is still readable."""
    half = tokenizer("🦊").input_ids[0]
    speller = IncrementalDetokenizer(ByteVocabulary(tokenizer))
    spelt = speller.decode(half) + speller.decode(tokenizer("a").input_ids[0])
    assert spelt.endswith("a")
    assert "\ufffd" in spelt
