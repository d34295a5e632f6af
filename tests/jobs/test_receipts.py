"""Comparison of receipts."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs.receipts import Difference, compare_receipts

RECEIPT: dict[str, Any] = {
    "checkpoint": "sha256:aa",
    "libraries": {"torch": "2.9", "diffusers": "0.36"},
    "seeds": [7],
    "results": ["11"],
}


def test_equal_receipts_are_identical() -> None:
    """Nothing is named."""
    comparison = compare_receipts(RECEIPT, RECEIPT)
    assert comparison.identical
    assert comparison.differences == ()


def test_components_that_differ_are_named_with_both_values() -> None:
    """Nested ones by a dotted name; one that is in one receipt only has no value in the other."""
    other = {
        **RECEIPT,
        "libraries": {"torch": "2.10", "diffusers": "0.36"},
        "added_weights": {"vace": "cc"},
        "results": ["22"],
    }
    comparison = compare_receipts(RECEIPT, other)
    assert not comparison.identical
    assert comparison.differences == (
        Difference("libraries.torch", "2.9", "2.10"),
        Difference("added_weights.vace", None, "cc"),
    )


def test_equal_pixels_are_identical_whatever_else_differs() -> None:
    """An upgrade that changes nothing is worth knowing."""
    comparison = compare_receipts(RECEIPT, RECEIPT | {"checkpoint": "sampled:aa"})
    assert comparison.identical
    assert [difference.component for difference in comparison.differences] == ["checkpoint"]


def test_without_results_nothing_is_identical() -> None:
    """A damaged record must not count as a proof."""
    assert not compare_receipts({}, {}).identical
