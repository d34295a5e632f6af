"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.pipelines.texts.stop_strings import StopStringFilter

TEXTS = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


@given(text=TEXTS, stops=STOPS, size=st.integers(1, 5))
def test_a_text_ends_before_its_first_stop_string_however_it_is_split(
    text: str, stops: list[str], size: int
) -> None:
    """The length of tokens must not affect what is shown. If a short stop string is complete before a longer
    one that began earlier, the short one counts."""
    stop_filter = StopStringFilter(stops)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    shown = "".join(stop_filter.feed(piece) for piece in pieces)
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    if stop_filter.stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown + stop_filter.flush() == text
        assert not any(stop in text for stop in stops)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    """Nothing that is cut off later may be streamed."""
    stop_filter = StopStringFilter(["END", "\n\n"])
    assert [stop_filter.feed(piece) for piece in ("a hill E", "N", "TER\n", "x")] == [
        "a hill ",
        "",
        "ENTER",
        "\nx",
    ]
    assert stop_filter.feed(" EN") == " "
    assert stop_filter.flush() == "EN"
    assert stop_filter.flush() == ""


def test_nothing_is_shown_after_a_stop_string() -> None:
    """Not even the rest of the same piece."""
    stop_filter = StopStringFilter(["."])
    assert stop_filter.feed("One. Two.") == "One"
    assert stop_filter.stopped
    assert stop_filter.feed("Three") == ""


@pytest.mark.parametrize("text", ["", "a", "a\nb"])
def test_without_stop_strings_text_is_shown_at_once(text: str) -> None:
    """Most requests have none."""
    stop_filter = StopStringFilter([])
    assert stop_filter.feed(text) == text
    assert stop_filter.flush() == ""
