from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ourvidz.prompts.clip import read_tokenizer
from ourvidz.prompts.tokens import Chunk, PromptTokenizer
from ourvidz.prompts.weights import Fragment, literal, parse

ROOM = 75


def counts(chunks: list[Chunk]) -> list[int]:
    return [len(chunk.tokens) for chunk in chunks]


def test_seventy_five_tokens_make_one_chunk(tokenizer_folder: Path) -> None:
    """A chunk is 75 tokens plus the start and end tokens; token 76 begins the second chunk."""
    tokenizer = read_tokenizer(tokenizer_folder)
    assert counts(tokenizer.chunks(literal("fox " * 75))) == [75]
    assert counts(tokenizer.chunks(literal("fox " * 76))) == [75, 1]
    assert counts(tokenizer.chunks(literal("fox " * 200))) == [75, 75, 50]


def test_a_word_is_not_cut_in_two(slow_folder: Path) -> None:
    """Chunk boundaries are word boundaries."""
    tokenizer = read_tokenizer(slow_folder)
    found = tokenizer.chunks(literal("fox " * 73 + "hills and"))
    assert [chunk.tokens[-1] for chunk in found] == ["fox</w>", "and</w>"]
    assert counts(found) == [73, 6]


def test_each_section_begins_a_chunk(slow_folder: Path) -> None:
    """BREAK starts a new chunk."""
    found = read_tokenizer(slow_folder).chunks(parse("the fox BREAK (red:1.2) fox BREAK and"))
    assert [chunk.tokens for chunk in found] == [
        ("the</w>", "fox</w>"),
        ("red</w>", "fox</w>"),
        ("and</w>",),
    ]
    assert [part.weight for part in found[1].fragments] == [1.2, 1.0]


def test_nothing_is_still_one_chunk(slow_folder: Path) -> None:
    """An empty prompt makes one chunk."""
    tokenizer = read_tokenizer(slow_folder)
    assert counts(tokenizer.chunks(literal(""))) == [0]
    assert counts(tokenizer.chunks(parse("()"))) == [0]


def test_a_fragment_keeps_its_weight_over_the_cut(slow_folder: Path) -> None:
    """A weighted sentence at the end of a chunk is weighted on both sides."""
    found = read_tokenizer(slow_folder).chunks(parse("fox " * 74 + "(the red fox:1.4)"))
    assert found[0].fragments[-1] == Fragment("the", 1.4)
    assert found[1].fragments == (Fragment(" red fox", 1.4),)


def test_a_tokenizer_that_truncates_is_copied_first(slow_folder: Path) -> None:
    """The model libraries leave theirs set to cut at 77 tokens; counting must not follow."""
    from tokenizers import Tokenizer

    theirs = read_tokenizer(slow_folder)._tokenizer
    shared = Tokenizer.from_str(theirs.to_str())
    shared.enable_truncation(3)
    shared.enable_padding(length=3)
    assert len(PromptTokenizer("tokenizer", shared).tokens("fox " * 9)) == 9
    assert shared.truncation is not None


PIECES = st.sampled_from(
    ["the fox ", "!", "!!!!!!!! ", "hills", "é🦊", "🦊" * 60, " ", "red, ", "<|endoftext|>", "日本語"]
)
TEXTS = st.one_of(st.text(st.characters(codec="utf-8")), st.lists(PIECES, max_size=60).map("".join))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text="🦊" * 900)
@example(text="!" * 400)
@example(text="x" * 300 + " the fox")
def test_chunks_are_the_whole_text_and_tokenize_to_what_they_say(tokenizer_folder: Path, text: str) -> None:
    """Each chunk tokenizes to its counted tokens, and the chunks together are the whole prompt."""
    tokenizer = read_tokenizer(tokenizer_folder)
    prompt = parse(text)
    found = tokenizer.chunks(prompt)
    assert all(len(chunk.tokens) <= ROOM for chunk in found)
    for chunk in found:
        again = [token for part in chunk.fragments for token in tokenizer.tokens(part.text)]
        assert again == list(chunk.tokens)
    chunk_text = "".join(part.text for chunk in found for part in chunk.fragments)
    whole = "".join(part.text for part in prompt.fragments)
    assert "".join(chunk_text.split()) == "".join(whole.split())
