from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ourvidz.prompts.weights import (
    HIGHEST,
    LOWEST,
    WeightedPrompt,
    clean,
    literal,
    parse,
    parse_prompt,
    weights_error,
)
from tests.properties import examples

ParsedSections = list[list[tuple[str, float]]]

CASES: list[tuple[str, ParsedSections]] = [
    # plain text
    ("", []),
    ("a red fox", [[("a red fox", 1.0)]]),
    ("a, b; c. d!", [[("a, b; c. d!", 1.0)]]),
    ("a:1.2", [[("a:1.2", 1.0)]]),
    ("C++ code", [[("C++ code", 1.0)]]),
    ("long--hair", [[("long--hair", 1.0)]]),
    ("hills :-)", [[("hills :-)", 1.0)]]),
    ("hills :]", [[("hills :]", 1.0)]]),
    ("a :1.2) b", [[("a :1.2) b", 1.0)]]),
    ("a) b] c", [[("a) b] c", 1.0)]]),
    ("<cat> {dog} \"x\" 'y'", [[("<cat> {dog} \"x\" 'y'", 1.0)]]),
    ("C:\\hills\\n", [[("C:\\hills\\n", 1.0)]]),
    ("ends with \\", [[("ends with \\", 1.0)]]),
    # brackets
    ("(x)", [[("x", 1.1)]]),
    ("[x]", [[("x", 0.909091)]]),
    ("((x))", [[("x", 1.21)]]),
    ("(((x)))", [[("x", 1.331)]]),
    ("[[x]]", [[("x", 0.826446)]]),
    ("([x])", [[("x", 1.0)]]),
    ("[(x)]", [[("x", 1.0)]]),
    ("a (red) fox", [[("a ", 1.0), ("red", 1.1), (" fox", 1.0)]]),
    ("a (red (old) fox)", [[("a ", 1.0), ("red ", 1.1), ("old", 1.21), (" fox", 1.1)]]),
    ("(a [b] c)", [[("a ", 1.1), ("b", 1.0), (" c", 1.1)]]),
    ("(a [b) c]", [[("a ", 1.1), ("b", 1.0), (" c", 0.909091)]]),
    # weights
    ("(x:1.2)", [[("x", 1.2)]]),
    ("(x:0.5)", [[("x", 0.5)]]),
    ("(x:.5)", [[("x", 0.5)]]),
    ("(x:1.)", [[("x", 1.0)]]),
    ("(x:+1.5)", [[("x", 1.5)]]),
    ("(x : 1.2 )", [[("x ", 1.2)]]),
    ("(x:1)", [[("x", 1.0)]]),
    ("((x:1.2))", [[("x", 1.32)]]),
    ("(a (b:0.5):1.5)", [[("a ", 1.5), ("b", 0.75)]]),
    ("[(x:1.1)]", [[("x", 1.0)]]),
    ("(4:3 picture:1.4)", [[("4:3 picture", 1.4)]]),
    ("(x:1.2:1.5)", [[("x:1.2", 1.5)]]),
    ("(a:1.2)(b:1.2)", [[("ab", 1.2)]]),
    ("(sharp:1.3), (calm:1.2)", [[("sharp", 1.3), (", ", 1.0), ("calm", 1.2)]]),
    # brackets without a weight
    ("(x:abc)", [[("x:abc", 1.1)]]),
    ("(x:)", [[("x:", 1.1)]]),
    ("(x:1.2.3)", [[("x:1.2.3", 1.1)]]),
    ("(x:1e3)", [[("x:1e3", 1.1)]]),
    ("(x:inf)", [[("x:inf", 1.1)]]),
    ("(x:1,5)", [[("x:1,5", 1.1)]]),
    ("(x:١)", [[("x:١", 1.1)]]),
    ("[x:0.5]", [[("x:0.5", 0.909091)]]),
    # clamping
    ("(x:9)", [[("x", 2.0)]]),
    ("(x:-1)", [[("x", 0.0)]]),
    ("((x:1.95))", [[("x", 2.0)]]),
    (f"(x:{'9' * 400})", [[("x", 2.0)]]),
    # unclosed brackets run to the end
    ("(x", [[("x", 1.1)]]),
    ("a (b c", [[("a ", 1.0), ("b c", 1.1)]]),
    ("a [b c", [[("a ", 1.0), ("b c", 0.909091)]]),
    ("((x)", [[("x", 1.21)]]),
    ("(x:1.2", [[("x:1.2", 1.1)]]),
    # escapes
    (r"\(x\)", [[("(x)", 1.0)]]),
    (r"\[x\]", [[("[x]", 1.0)]]),
    (r"a \\ b", [[("a \\ b", 1.0)]]),
    (r"(fox \(red\):1.3)", [[("fox (red)", 1.3)]]),
    (r"\\(x)", [[("\\", 1.0), ("x", 1.1)]]),
    # whitespace
    ("()", []),
    ("( )", []),
    ("(:1.2)", []),
    ("(a:1.2) (b:1.3)", [[("a", 1.2), ("b", 1.3)]]),
    ("()a", [[("a", 1.0)]]),
    # BREAK
    ("a BREAK b", [[("a ", 1.0)], [(" b", 1.0)]]),
    ("a BREAK", [[("a ", 1.0)]]),
    ("BREAK a", [[(" a", 1.0)]]),
    ("a BREAK BREAK b", [[("a ", 1.0)], [(" b", 1.0)]]),
    ("a,BREAK,b", [[("a,", 1.0)], [(",b", 1.0)]]),
    ("(a BREAK b:1.3)", [[("a ", 1.3)], [(" b", 1.3)]]),
    ("BREAKING a break", [[("BREAKING a break", 1.0)]]),
]


def fragments_of(prompt: WeightedPrompt) -> ParsedSections:
    return [[(part.text, part.weight) for part in section.fragments] for section in prompt.sections]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_the_weight_syntax_is_that_of_common_tools(text: str, expected: ParsedSections) -> None:
    """Brackets, weights, escapes and BREAK have the meaning that prompt authors know from other tools."""
    assert fragments_of(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(sharp focus:1.3), [calm] sea", "sharp focus, calm sea"),
        ("red(blue)", "red blue"),
        ("a BREAK b", "a b"),
        (r"fox \(red\)", "fox (red)"),
        ("(a:1.2) (b:1.3)", "a b"),
        ("hills :-)", "hills :-)"),
        (" () ", ""),
    ],
)
def test_the_clean_text_has_no_syntax(text: str, words: str) -> None:
    """The clean text is the input of the pooled embedding."""
    assert clean(text) == words


PIECES = st.sampled_from(
    ["(", ")", "[", "]", ":", ":1.2)", "\\", " ", ",", "fox", "red", "1.5", "BREAK", "é🦊"]
)
ANYTHING = st.one_of(st.text(), st.lists(PIECES).map("".join))


@examples(300)
@given(ANYTHING)
@example("(" * 20 + "a" + ":2)" * 20)
@example("\ud800 (\x00)")
def test_any_text_is_parsed_and_its_weights_are_in_range(text: str) -> None:
    """Parsing never raises, for any text."""
    for section in parse(text).sections:
        assert section.fragments
        for part in section.fragments:
            assert LOWEST <= part.weight <= HIGHEST
            assert part.text.strip()
    weights_error(text)


@examples(300)
@given(ANYTHING)
@example("un(believ)able")
def test_no_text_outside_the_syntax_is_dropped_or_added(text: str) -> None:
    """The letters and digits of the fragments are those of the prompt, in order."""

    def words(text: str) -> str:
        return re.sub(r"[\W_]", "", text)

    without_numbers = re.sub(r":\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*\)", "", text)
    kept = words("".join(part.text for part in parse(text).fragments))
    every = words(re.sub(r"BREAK", "", text))
    at_least = words(re.sub(r"BREAK", "", without_numbers))
    assert is_subsequence(at_least, kept.replace("BREAK", ""))
    assert is_subsequence(kept.replace("BREAK", ""), every)
    assert words(clean(text)) == kept


def is_subsequence(short: str, long: str) -> bool:
    letters = iter(long)
    return all(letter in letters for letter in short)


@examples(200)
@given(st.text(st.characters(exclude_characters="()[]\\:"), min_size=1).filter(lambda text: text.strip()))
def test_text_without_syntax_is_one_literal_fragment(text: str) -> None:
    """Enabling weights does not change a prompt without syntax."""
    if "BREAK" not in text:
        assert fragments_of(parse(text)) == fragments_of(literal(text))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000 + "x" + ")" * 1000,
        "(" * 10_000,
        "(a" * 5_000,
        "(a[b" * 2_500,
        ":" + "1" * 9_999,
        "a" + " " * 9_998 + ":",
        "[" * 3_000 + "(" * 3_000 + "]" * 3_000,
        "(a:2" * 2_000 + ":2)" * 500,
        "BREAK " * 1_600,
    ],
    ids=lambda text: text[:8],
)
def test_deeply_nested_brackets_are_parsed_within_a_second(text: str) -> None:
    """Malicious prompts neither overflow the stack nor block the shim."""
    started = time.process_time()
    parse(text)
    weights_error(text)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    "weights", ["(a:1.2)", "(a:1.3), (b c:0.8)", "a", "(a", "[a]", "(16:9 frame:1.2)", "(x:9)"]
)
def test_valid_prompt_weights_have_no_error(weights: str) -> None:
    """`prompt_weights` of these forms are used."""
    assert weights_error(weights) is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("(a:abc)", "character 1 "),
        ("(a:1.2), (b:heavy)", "character 10 "),
        ("(a:nan)", "no readable weight"),
        ("(a:inf)", "no readable weight"),
        ("(a:1.2.3)", "no readable weight"),
        ("(a:)", "no readable weight"),
        ("(a:1.2", "no readable weight"),
        ("[a:0.5]", "no readable weight"),
        ("()", "Nothing is left"),
        ("((,)) ", "Nothing is left"),
        ("   ", "Nothing is left"),
        ("BREAK", "Nothing is left"),
    ],
)
def test_invalid_prompt_weights_have_an_error_with_the_reason(weights: str, words: str) -> None:
    """A caller learns of a mistyped weight, which would otherwise be used as text of the prompt."""
    reason = weights_error(weights)
    assert reason is not None
    assert words in reason
    assert not {"abc", "heavy"} & set(re.findall(r"\w+", reason)), "what people write is not repeated"


def test_prompt_weights_are_appended_to_the_prompt() -> None:
    """The prompt keeps its weights, and an unclosed bracket ends at the end of the prompt."""
    parsed = parse_prompt("a (red fox", "(calm:1.2) sea", weighted=True)
    assert (parsed.strategy, parsed.reason) == ("compel", None)
    assert fragments_of(parsed.prompt) == [
        [("a ", 1.0), ("red fox", 1.1), (", ", 1.0), ("calm", 1.2), (" sea", 1.0)]
    ]
    assert parsed.prompt.text == "a red fox, calm sea"


def test_prompt_weights_belong_to_the_last_section() -> None:
    """A chunk of their own would give them too much influence."""
    parsed = parse_prompt("a BREAK b", "(c:1.2) BREAK d", weighted=True)
    assert fragments_of(parsed.prompt) == [
        [("a ", 1.0)],
        [(" b", 1.0), (", ", 1.0), ("c", 1.2)],
        [(" d", 1.0)],
    ]


def test_prompt_weights_are_enough_without_a_prompt() -> None:
    """A job with an empty prompt uses the text of its `prompt_weights`."""
    assert fragments_of(parse_prompt("", "(a:1.2)", weighted=True).prompt) == [[("a", 1.2)]]


def test_invalid_prompt_weights_leave_the_prompt_unchanged() -> None:
    """The image is generated without them, and the reason is part of the result."""
    parsed = parse_prompt("a (red:1.2) fox", "(a:abc)", weighted=True)
    assert parsed.strategy == "fallback"
    assert parsed.reason
    assert parsed.prompt == literal("a (red:1.2) fox")


def test_a_prompt_of_brackets_only_is_literal_text() -> None:
    """Without any text in its fragments, the prompt is used as it is."""
    parsed = parse_prompt("(())", weighted=True)
    assert parsed.strategy == "fallback"
    assert parsed.prompt == literal("(())")


def test_brackets_are_literal_text_if_weights_are_disabled() -> None:
    """The prompt is parsed only if weights are enabled."""
    parsed = parse_prompt("a (red:1.2) fox BREAK b", "(a:1.2)", weighted=False)
    assert parsed.strategy == "none"
    assert fragments_of(parsed.prompt) == [[("a (red:1.2) fox BREAK b", 1.0)]]
