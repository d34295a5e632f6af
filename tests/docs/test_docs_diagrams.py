"""The diagrams of the architecture chapters are valid Mermaid, in the subset that this parser supports."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/architecture").glob("*.md"))

LABEL = r'"[^"\[\]{}|]+"'
NODE = re.compile(rf"(\w+)(?:\[{LABEL}\]|\[\({LABEL}\)\]|\{{{LABEL}\}})")
EDGE = re.compile(r"\w+(?: -->(?:\|[^|\"]+\|)? \w+)+")
MESSAGE = re.compile(r"(\w+)(?:->>|-->>)(\w+): .+")
TRANSITION = re.compile(r"(\[\*\]|\w+) --> (\[\*\]|\w+): [^:]+")

OpenPage = Callable[[str], Any]


def check_flowchart(lines: list[str]) -> None:
    """Raise `AssertionError` for an invalid line or an edge between undefined nodes."""
    nodes: set[str] = set()
    used: set[str] = set()
    depth = 0
    for line in lines:
        if re.fullmatch(rf"subgraph \w+\[{LABEL}\]", line):
            depth += 1
        elif line == "end":
            depth -= 1
        elif node := NODE.fullmatch(line):
            assert node[1] not in nodes, line
            nodes.add(node[1])
        else:
            assert EDGE.fullmatch(line), line
            used.update(re.findall(r"\w+", re.sub(r"\|[^|]*\|", "", line)))
    assert depth == 0
    assert used == nodes, "every node has an edge, and every edge has nodes"


def check_sequence(lines: list[str]) -> None:
    """Raise `AssertionError` for an invalid line or a message between undefined participants."""
    names: set[str] = set()
    depth = 0
    for line in lines:
        if participant := re.fullmatch(r"participant (\w+) as .+", line):
            names.add(participant[1])
        elif line.startswith("loop "):
            depth += 1
        elif line == "end":
            depth -= 1
        else:
            message = MESSAGE.fullmatch(line)
            assert message, line
            assert {message[1], message[2]} <= names, line
    assert depth == 0


def check_states(lines: list[str]) -> None:
    """Raise `AssertionError` for an invalid line or a state that cannot be left or reached."""
    edges = []
    for line in lines:
        transition = TRANSITION.fullmatch(line)
        assert transition, line
        edges.append((transition[1], transition[2]))
    assert {left for left, _ in edges} == {right for _, right in edges}


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "flowchart LR": check_flowchart,
    "flowchart TD": check_flowchart,
    "sequenceDiagram": check_sequence,
    "stateDiagram-v2": check_states,
}


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_a_diagram_that_parses(page: OpenPage, name: str) -> None:
    """An invalid diagram is rendered as an error message."""
    (diagram,) = page(name).blocks("mermaid")
    kind, *lines = [line.strip() for line in diagram.text.splitlines() if line.strip()]
    CHECKS[kind](lines)


def test_the_chapters_are_numbered_in_reading_order(page: OpenPage) -> None:
    """Each chapter links to the next one."""
    assert [Path(name).name[:2] for name in CHAPTERS] == [f"{number:02}" for number in range(len(CHAPTERS))]
    for name, next_name in pairwise(CHAPTERS):
        assert f"]({Path(next_name).name})" in page(name).text.splitlines()[-1]
