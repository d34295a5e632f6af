"""Markdown pages, and a running stack for their commands."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from ourvidz.settings import environment

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
        """Return the fenced blocks in these languages, or all blocks."""
        blocks = [Block(*match.groups(default="")) for match in FENCE.finditer(self.text)]
        return [block for block in blocks if not languages or block.language in languages]

    def headings(self) -> list[str]:
        """Return the headings, in order, without their marks."""
        return HEADING.findall(self.prose)

    def section(self, heading: str) -> str:
        """Return the text between a heading and the next one, without fenced blocks."""
        found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", self.prose, re.MULTILINE | re.DOTALL)
        assert found, f"{self.path.name} has no section {heading!r}"
        return found[1]

    def rows(self, *header: str) -> list[list[str]]:
        """Return the rows of every table whose header begins with these cells."""
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


@pytest.fixture(scope="session")
def docs_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One running `ourvidz up` for all pages, with the settings that the pages require."""
    system = load_file(ROOT / "tests/system/conftest.py")
    env = {"JOB_CALLBACK_SECRET": "my-secret", "OURVIDZ_CALLBACK_ALLOW": "localhost"}
    with system.stack(
        tmp_path_factory.mktemp("docs") / "state", "--workers", "sdxl,chat", env=env
    ) as running:
        yield running


def load_file(path: Path) -> Any:
    """Import a Python file by its path."""
    spec = spec_from_file_location(path.parent.name + "_" + path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fast_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a replacement for `python` that runs programs in a process with preloaded libraries."""
    folder = tmp_path_factory.mktemp("python")
    source = ROOT / "tests/docs/preloaded.py"
    program, path = folder / "python", folder / "socket"
    program.write_text(load_file(source).client(path))
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, str(source), str(path)],
        env=environment(OMP_WAIT_POLICY="PASSIVE", PYTHONPATH=str(ROOT)),
    )
    while not path.exists():
        assert server.poll() is None, "the server of fast_python has ended"
        time.sleep(0.05)
    yield program
    server.kill()
    server.wait()
