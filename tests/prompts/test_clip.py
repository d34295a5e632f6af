from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from ourvidz.errors import ModelLoadError
from ourvidz.prompts.clip import read_tokenizer
from tests.properties import examples

PIECES = st.sampled_from(
    [
        "the",
        "The",
        "red",
        " ",
        "  ",
        "\n",
        "fox",
        "!",
        "!!",
        "'s",
        "don't",
        "é",
        "e\u0301",
        "日本",
        "🦊",
        "12",
    ]
)
SPECIAL_CASES = st.sampled_from(["½", "İ", "ß", "\x1c", "\u00a0", "</w>", "-", "(", ":1.2)"])
SPECIAL_TOKENS = st.sampled_from(["<|endoftext|>", "<|ENDOFTEXT|>", "<|startoftext|>"])
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8")), st.lists(PIECES | SPECIAL_CASES | SPECIAL_TOKENS).map("".join)
)


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text="The red fox and the café!! <|ENDOFTEXT|> it's 42")
def test_tokens_equal_those_of_transformers(tokenizer_folder: Path, text: str) -> None:
    """The shim counts the same tokens as the text encoders, for any text."""
    reference, tokenizer = tokenizers(tokenizer_folder)
    assert tokenizer.tokens(text) == reference.tokenize(text)


def tokenizers(folder: Path, _read: dict[Path, tuple] = {}) -> tuple:  # noqa: B006  read once a folder
    from transformers import CLIPTokenizer

    if folder not in _read:
        reference = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        _read[folder] = reference, read_tokenizer(folder)
    return _read[folder]


def test_the_context_length_is_read_from_the_tokenizer(slow_tokenizer_folder: Path) -> None:
    """Checkpoints may have a context length other than 77."""
    config = slow_tokenizer_folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("77", "40"))
    assert read_tokenizer(slow_tokenizer_folder).context == 40


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", None, r"tokenizer_config\.json cannot be read"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json is not a JSON object"),
        ("vocab.json", None, r"vocab\.json cannot be read"),
        ("vocab.json", "{", r"vocab\.json is not JSON"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json is not a CLIP tokenizer"),
        ("merges.txt", None, r"merges\.txt cannot be read"),
        ("merges.txt", "one", r"is not a CLIP tokenizer"),
        ("merges.txt", "x y", r"is not a CLIP tokenizer"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not a CLIP tokenizer"),
    ],
)
def test_the_error_names_the_damaged_file(
    slow_tokenizer_folder: Path, name: str, content: str | None, words: str
) -> None:
    """Operators see which file of the checkpoint to replace."""
    if content is None:
        (slow_tokenizer_folder / name).unlink()
    else:
        (slow_tokenizer_folder / name).write_text(content)
    with pytest.raises(ModelLoadError, match=words):
        read_tokenizer(slow_tokenizer_folder)
