"""Requests: what a caller sent, and whether a later request under the same id is the same."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.jobs.requests import dump_request, is_same_request


def request(sent: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The text of a request with these fields."""
    return dump_request(sent | defaults, defaults.keys())


@pytest.mark.parametrize(
    ("sent", "defaults"),
    [
        ({"prompt": "a"}, {"steps": 30, "size": 64}),
        ({"prompt": "a", "steps": 25}, {"size": 64}),
        ({"prompt": "a", "steps": 25.0}, {"size": 1024}),
        ({"prompt": "a", "loras": [], "reference": None, "copy": False}, {"steps": 25}),
        ({"prompt": "a"}, {"steps": 25, "size": 64, "added": 7}),
        ({"prompt": "a"}, {}),
    ],
)
def test_what_a_default_fills_in_does_not_distinguish_requests(
    sent: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """A release or an installation may change it; a caller may spell it out."""
    first = request({"prompt": "a"}, {"steps": 25, "size": 64, "reference": None, "copy": False})
    again = request(sent, defaults)
    assert is_same_request(first, again)
    assert is_same_request(again, first)


@pytest.mark.parametrize(
    ("sent", "defaults"),
    [
        ({"prompt": "b"}, {"steps": 25}),
        ({"prompt": "a", "steps": 30}, {}),
        ({"prompt": "a", "steps": 0}, {}),
        ({"prompt": "a", "reference": "x"}, {"steps": 25}),
        ({"prompt": "a", "negative": ""}, {"steps": 25}),
        ({"prompt": ""}, {"steps": 25}),
        ({}, {"steps": 25}),
    ],
)
def test_what_a_caller_sent_distinguishes_requests(sent: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Two jobs under one id are a conflict; an empty value overrides a default that is not empty."""
    first = request({"prompt": "a"}, {"steps": 25, "negative": "fog"})
    other = request(sent, defaults)
    assert not is_same_request(first, other)
    assert not is_same_request(other, first)


def test_a_request_takes_a_few_bytes_a_field() -> None:
    """It is kept with every record; empty defaults take none."""
    text = request({"prompt": "a" * 10_000}, {"steps": 25, "reference": None})
    assert len(text) < 40
    assert "reference" not in text
