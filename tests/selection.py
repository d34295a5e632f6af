"""Marks tests by what they need, and orders them for parallel processes. Loaded by `tests/conftest.py`."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Collection, Iterator, Sequence
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
"""Marks by folder; a test with `@pytest.mark.fast` does not get the mark of its folder."""
MARK_OF_FIXTURE = {
    "stack": "system",
    "stacks": "system",
    "docs_stack": "system",
    "browser": "browser",
    "deno": "deno",
    "supabase_server": "deno",
    "untrained_sdxl": "model",
    "untrained_wan": "model",
    "qwen": "model",
}
"""Marks by fixture, for tests that use it directly or through another fixture."""
LONG = ("system", "browser", "model", "training")
"""Files with tests of these marks start first, since a long file that starts late extends the run."""
SLOW_FILES = (
    *(
        "benchmarks/test_peers.py",
        "cli/test_embedded.py",
        "cli/test_readability.py",
        "cli/test_supervisor.py",
    ),
    *("keeper/test_process.py", "ledger/test_replication.py", "test_redis_clients.py"),
    *("web/test_many_callers.py", "web/test_openapi_fuzz.py", "web/test_serve.py", "wiring/test_models.py"),
    *("test_delivery.py", "test_pool.py", "test_startup.py", "vram/test_residency.py"),
)
"""Other files that take more than five seconds, in most of which the tests wait for processes."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # Torch reads it when it is imported; parallel test processes must not each use every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Ordering:
    """Moves files with long tests to the front and spreads slow ones over the rest. The (random) order is
    unchanged otherwise."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the selected tests."""
        long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in LONG)}
        files = list(dict.fromkeys(item.path for item in items))
        first = [path for path in files if path in long]
        rest = spread([path for path in files if path not in long], {TESTS / name for name in SLOW_FILES})
        position = {path: number for number, path in enumerate([*first, *rest])}
        items.sort(key=lambda item: position[item.path])


def spread(files: Sequence[Path], slow: Collection[Path]) -> list[Path]:
    """Return the files with the slow ones evenly among the first two thirds of the others: while one waits,
    the other test processes work, and none of them starts last."""
    placed, others = [path for path in files if path in slow], [path for path in files if path not in slow]
    distance = len(others) * 2 // 3 / max(1, len(placed))
    for number, path in reversed(list(enumerate(placed))):
        others.insert(round(number * distance), path)
    return others


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the ordering, which must run after the selection by marks, and what Hypothesis loads next."""
    config.pluginmanager.register(Ordering())
    if config.getoption("--hypothesis-profile", None):
        importlib.import_module("tests.properties")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marks before `-m` selects by them."""
    for item in items:
        for mark in _marks(item):
            item.add_marker(mark)


def _marks(item: pytest.Item) -> Iterator[str]:
    for name in getattr(item, "fixturenames", ()):
        if name in MARK_OF_FIXTURE:
            yield MARK_OF_FIXTURE[name]
    if item.get_closest_marker("fast") is None:
        yield from _marks_of_folder(item.path.parent)


@functools.cache
def _marks_of_folder(folder: Path) -> list[str]:
    return [mark for path, mark in MARK_OF_PATH.items() if folder.is_relative_to(TESTS / path)]
