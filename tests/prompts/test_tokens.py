from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from ourvidz.prompts.clip import read_tokenizer
from ourvidz.prompts.tokens import Chunk, PromptTokenizer
from ourvidz.prompts.weights import Fragment, literal, parse
from tests.properties import examples

CHUNK_TOKENS = 75


def counts(chunks: list[Chunk]) -> list[int]:
    return [len(chunk.tokens) for chunk in chunks]


def test_seventy_five_tokens_make_one_chunk(tokenizer_folder: Path) -> None:
    """A chunk is 75 tokens plus the start and end tokens; token 76 begins the second chunk."""
    tokenizer = read_tokenizer(tokenizer_folder)
    assert counts(tokenizer.chunks(literal("fox " * 75))) == [75]
    assert counts(tokenizer.chunks(literal("fox " * 76))) == [75, 1]
    assert counts(tokenizer.chunks(literal("fox " * 200))) == [75, 75, 50]


def test_a_word_is_not_split_over_two_chunks(slow_tokenizer_folder: Path) -> None:
    """A word whose tokens do not fit into a chunk begins the next one."""
    tokenizer = read_tokenizer(slow_tokenizer_folder)
    chunks = tokenizer.chunks(literal("fox " * 73 + "hills and"))
    assert [chunk.tokens[-1] for chunk in chunks] == ["fox</w>", "and</w>"]
    assert counts(chunks) == [73, 6]


def test_break_starts_a_new_chunk(slow_tokenizer_folder: Path) -> None:
    """Each section between BREAKs has chunks of its own."""
    chunks = read_tokenizer(slow_tokenizer_folder).chunks(parse("the fox BREAK (red:1.2) fox BREAK and"))
    assert [chunk.tokens for chunk in chunks] == [
        ("the</w>", "fox</w>"),
        ("red</w>", "fox</w>"),
        ("and</w>",),
    ]
    assert [part.weight for part in chunks[1].fragments] == [1.2, 1.0]


def test_an_empty_prompt_has_one_chunk(slow_tokenizer_folder: Path) -> None:
    """The encoders need at least one chunk."""
    tokenizer = read_tokenizer(slow_tokenizer_folder)
    assert counts(tokenizer.chunks(literal(""))) == [0]
    assert counts(tokenizer.chunks(parse("()"))) == [0]


def test_a_fragment_split_over_two_chunks_keeps_its_weight(slow_tokenizer_folder: Path) -> None:
    """Both parts of the fragment have its weight."""
    chunks = read_tokenizer(slow_tokenizer_folder).chunks(parse("fox " * 74 + "(the red fox:1.4)"))
    assert chunks[0].fragments[-1] == Fragment("the", 1.4)
    assert chunks[1].fragments == (Fragment(" red fox", 1.4),)


def test_a_truncating_tokenizer_is_copied_before_counting(slow_tokenizer_folder: Path) -> None:
    """transformers leaves its tokenizer configured to truncate at 77 tokens, which would limit the count."""
    from tokenizers import Tokenizer

    reference = read_tokenizer(slow_tokenizer_folder)._tokenizer
    shared = Tokenizer.from_str(reference.to_str())
    shared.enable_truncation(3)
    shared.enable_padding(length=3)
    assert len(PromptTokenizer("tokenizer", shared).tokens("fox " * 9)) == 9
    assert shared.truncation is not None


PIECES = st.sampled_from(
    ["the fox ", "!", "!!!!!!!! ", "hills", "é🦊", "🦊" * 60, " ", "red, ", "<|endoftext|>", "日本語"]
)
TEXTS = st.one_of(st.text(st.characters(codec="utf-8")), st.lists(PIECES, max_size=60).map("".join))


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text="🦊" * 900)
@example(text="!" * 400)
@example(text="x" * 300 + " the fox")
def test_the_chunks_contain_the_whole_text_and_have_the_counted_tokens(
    tokenizer_folder: Path, text: str
) -> None:
    """The text of each chunk has the counted tokens, and the chunks together are the prompt."""
    tokenizer = read_tokenizer(tokenizer_folder)
    prompt = parse(text)
    chunks = tokenizer.chunks(prompt)
    assert all(len(chunk.tokens) <= CHUNK_TOKENS for chunk in chunks)
    for chunk in chunks:
        again = [token for part in chunk.fragments for token in tokenizer.tokens(part.text)]
        assert again == list(chunk.tokens)
    chunk_text = "".join(part.text for chunk in chunks for part in chunk.fragments)
    whole = "".join(part.text for part in prompt.fragments)
    assert "".join(chunk_text.split()) == "".join(whole.split())
