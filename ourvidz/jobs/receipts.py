"""Compares the receipts of two runs of one job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RESULTS = "results"
"""The component of a receipt that holds the digests of the pixels; the others are what they depend on."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A component of a receipt, by its dotted name, with its value in each; None where one lacks it."""

    component: str
    original: Any
    replayed: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """`identical`: whether the pixels of all results are equal. `differences`: the components that differ,
    without the results."""

    identical: bool
    differences: tuple[Difference, ...]


def compare_receipts(original: Mapping[str, Any], replayed: Mapping[str, Any]) -> Comparison:
    """Compare the receipts of a job and of its replay."""
    one, other = _flat(original), _flat(replayed)
    names = [name for name in dict.fromkeys([*one, *other]) if name != RESULTS]
    return Comparison(
        identical=one.get(RESULTS) == other.get(RESULTS) is not None,
        differences=tuple(
            Difference(name, one.get(name), other.get(name))
            for name in names
            if one.get(name) != other.get(name)
        ),
    )


def _flat(receipt: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The components of a receipt by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in receipt.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
