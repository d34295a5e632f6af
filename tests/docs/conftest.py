"""Reading Markdown pages, and a stack to run their commands against."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str
    title: str
    text: str


class Page:
    """One Markdown page."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.prose = FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[Block]:
        """The fenced blocks in some languages, or all."""
        found = [Block(*match.groups(default="")) for match in FENCE.finditer(self.text)]
        return [block for block in found if not languages or block.language in languages]

    def headings(self) -> list[str]:
        """The headings, in order, without their marks."""
        return HEADING.findall(self.prose)

    def section(self, heading: str) -> str:
        """What stands between a heading and the next one, fenced blocks left out."""
        found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", self.prose, re.MULTILINE | re.DOTALL)
        assert found, f"{self.path.name} has no section {heading!r}"
        return found[1]

    def rows(self, *header: str) -> list[list[str]]:
        """The rows of every table whose header begins like this."""
        lines = self.prose.splitlines()
        starts = [at for at, line in enumerate(lines) if tuple(_cells(line)[: len(header)]) == header]
        assert starts, f"{self.path.name} has no table {header}"
        found = []
        for start in starts:
            for line in lines[start + 2 :]:
                if not line.startswith("|"):
                    break
                found.append(_cells(line))
        return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


@pytest.fixture(scope="session")
def page() -> Callable[[str], Page]:
    """A page by its path in the repository."""
    return lambda name: Page(ROOT / name)


@pytest.fixture(scope="module")
def docs_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One running `ourvidz up`; how it is started is told beside the system tests."""
    spec = spec_from_file_location("system_stack", ROOT / "tests/system/conftest.py")
    assert spec
    assert spec.loader
    system = module_from_spec(spec)
    spec.loader.exec_module(system)
    with system.stack(tmp_path_factory.mktemp("docs") / "state", "--workers", "sdxl,chat") as running:
        yield running
