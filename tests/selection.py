"""Marks tests by what they need, and orders them for parallel processes. Loaded by `tests/conftest.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARK_OF_PATH = {
    "system": "system",
    "meaning": "model",
    "contract": "model",
    "cli/wan": "model",
    "training": "training",
}
"""Every test of a folder has its mark, unless it says `@pytest.mark.fast`."""
MARK_OF_FIXTURE = {
    "stack": "system",
    "stacks": "system",
    "docs_stack": "system",
    "browser": "browser",
    "deno": "deno",
    "untrained_sdxl": "model",
    "untrained_wan": "model",
    "qwen": "model",
}
"""Every test that uses one of these fixtures, directly or not, has the mark."""
LONG = ("system", "browser", "model", "training")
"""Files with a test of these marks start first: the last file to start ends the run."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read by torch when it is imported: test processes that run side by side must not each take every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Ordering:
    """Moves whole files with long tests to the front. Within both groups the (random) order stays."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests that were selected."""
        long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in LONG)}
        items.sort(key=lambda item: item.path not in long)


def pytest_configure(config: pytest.Config) -> None:
    """Register the ordering, which must come after the selection by marks."""
    config.pluginmanager.register(Ordering())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marks. Before everything else: `-m` selects by them."""
    for item in items:
        for mark in _marks(item):
            item.add_marker(mark)


def _marks(item: pytest.Item) -> Iterator[str]:
    for name in getattr(item, "fixturenames", ()):
        if name in MARK_OF_FIXTURE:
            yield MARK_OF_FIXTURE[name]
    if item.get_closest_marker("fast") is None:
        folder = item.path.parent
        yield from (mark for path, mark in MARK_OF_PATH.items() if folder.is_relative_to(TESTS / path))
