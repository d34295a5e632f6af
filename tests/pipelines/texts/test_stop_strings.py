"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.pipelines.texts.stop_strings import StopStringFilter

TEXTS = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def shown(text: str, stops: list[str], size: int) -> tuple[list[str], StopStringFilter]:
    screen = StopStringFilter(stops)
    return [screen.feed(text[at : at + size]) for at in range(0, len(text), size)], screen


def first_stop(text: str, stops: list[str]) -> int | None:
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


@given(text=TEXTS, stops=STOPS, size=st.integers(1, 5))
def test_a_text_ends_before_its_first_stop_string_however_it_comes(
    text: str, stops: list[str], size: int
) -> None:
    """Pieces are as long as tokens happen to be: they must not decide what is shown.

    Where a stop string is complete is known before a longer one that began earlier.
    """
    pieces, screen = shown(text, stops, size)
    whole = "".join(pieces)
    assert not any(stop in whole for stop in stops)
    assert text.startswith(whole)
    if not screen.stopped:
        assert whole + screen.flush() == text
        assert first_stop(text, stops) is None
    else:
        assert any(text[len(whole) :].startswith(stop) for stop in stops)


def test_what_may_become_a_stop_string_is_kept_back_and_shown_when_it_does_not() -> None:
    """A follower of the stream must not see the half of what will be cut."""
    screen = StopStringFilter(["END", "\n\n"])
    assert [screen.feed(piece) for piece in ("a hill E", "N", "TER\n", "x")] == [
        "a hill ",
        "",
        "ENTER",
        "\nx",
    ]
    assert screen.feed(" EN") == " "
    assert screen.flush() == "EN"
    assert screen.flush() == ""


def test_nothing_comes_after_the_end() -> None:
    """Not even what came in the same piece."""
    screen = StopStringFilter(["."])
    assert screen.feed("One. Two.") == "One"
    assert screen.stopped
    assert screen.feed("Three") == ""


@pytest.mark.parametrize("text", ["", "a", "a\nb"])
def test_without_stop_strings_everything_comes_at_once(text: str) -> None:
    """Most requests have none."""
    screen = StopStringFilter([])
    assert screen.feed(text) == text
    assert screen.flush() == ""
