"""Marks tests by what they need, and orders them for parallel processes. Loaded by `tests/conftest.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARK_OF_PACKAGE = {"system": "system", "meaning": "model", "training": "training"}
"""Every test of these packages has the mark, unless it says `@pytest.mark.fast`."""
MARK_OF_FIXTURE = {
    "stack": "system",
    "stacks": "system",
    "docs_stack": "system",
    "browser": "browser",
    "deno": "deno",
}
"""Every test that uses one of these fixtures, directly or not, has the mark."""
LONG = ("system", "browser", "model", "training")
"""Files with a test of these marks start first: the last file to start ends the run."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marks, then move whole files with long tests to the front. Within both groups the (random)
    order stays."""
    for item in items:
        for mark in _marks(item):
            item.add_marker(mark)
    long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in LONG)}
    items.sort(key=lambda item: item.path not in long)


def _marks(item: pytest.Item) -> set[str]:
    package = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
    marks = {MARK_OF_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in MARK_OF_FIXTURE}
    if package in MARK_OF_PACKAGE and item.get_closest_marker("fast") is None:
        marks.add(MARK_OF_PACKAGE[package])
    return marks
