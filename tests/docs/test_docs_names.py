"""The documentation uses current names only, and lists every package, page, decision and term."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ourvidz
from ourvidz import celery_settings
from ourvidz.jobs.catalog import CATALOG

ROOT = Path(ourvidz.__file__).parents[1]
GLOSSARY, INDEX, OVERVIEW = (f"docs/{name}.md" for name in ("glossary", "index", "architecture/00-overview"))
PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(
        str(path.relative_to(ROOT))
        for folder in ("docs", "benchmarks", "training", "deploy", "ourvidz")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ),
]
DOTTED = re.compile(r"(?<!/)\bourvidz(?:\.[a-zA-Z_]\w*)+")
PATHS = re.compile(r"(?<!/)\b(?:ourvidz|tests|training|benchmarks|scripts|docs|deploy)/[\w./*-]+")
NOT_MODULES = frozenset(
    {
        *(row.task for row in CATALOG.values()),
        *(value for name, value in vars(celery_settings).items() if name.endswith("_TASK")),
        "ourvidz.target",  # a systemd unit
        "ourvidz.safety_terms",  # an entry-point group
    }
)

METAPHORS = (
    *("room", "house", "floor", "door", "ladder", "stairs", "rung", "story", "stories", "seat", "company"),
    *("courier", "bury", "lanes", "attendance", "twin", "whoever"),
)
OLD_NAMES = (
    *("Turn", "Company", "turns.py", "LEAD_S", "Attendance", "Presence", "_Table", "speak", "Lanes"),
    *("Opening", "Going", "key_values", "Speller", "Alphabet", "Screen", "Piece", "Keeper", "Courier"),
    *("Hearing", "Look", "Words", "Steering", "wording", "plain.py", "links.py", "Fault", "told()"),
    *("Rung", "memory_ladder", "_climb", "last_words", "surroundings", "letters", "net/guard.py", "SYNC"),
    *("net/reach.py", "net/guard", "net/reach", "memory_store", "MemoryLedger", "ClaimedTurn", "JobFault"),
    *("Found", "Made", "Kept", "Heard", "said_before"),
)

OpenPage = Callable[[str], Any]


def exists(dotted: str) -> bool:
    """Return whether a dotted name is a module, or a name at the top level of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        module = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if not module.is_file():
            continue
        rest = parts[length:]
        return len(rest) <= 1 and (not rest or rest[0] in top_level(module))
    return False


def top_level(module: Path) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("name", PAGES)
def test_every_module_that_a_page_names_exists(page: OpenPage, name: str) -> None:
    """Readers look up these names in the code."""
    text = page(name).text
    missing = {found for found in DOTTED.findall(text) if found not in NOT_MODULES and not exists(found)}
    for found in PATHS.findall(text):
        path = found.rstrip("./,-")
        if "*" not in path and "NNNN" not in path and not (ROOT / path).exists():
            missing.add(found)
    assert missing == set()


@pytest.mark.parametrize("name", PAGES)
def test_pages_use_the_terms_of_the_field(page: OpenPage, name: str) -> None:
    """Pages contain no metaphors and no former names."""
    text = page(name).text
    prose = re.sub(r"`[^`]*`", "", page(name).prose).lower()
    metaphors = [word for word in METAPHORS if re.search(rf"\b{word}s?\b", prose)]
    old = [word for word in OLD_NAMES if re.search(rf"(?<![\w.]){re.escape(word)}(?!\w|:{{)", code_of(text))]
    assert (metaphors, old) == ([], [])


def code_of(text: str) -> str:
    """Return the code spans of a page, one per line."""
    return "\n".join(re.findall(r"`([^`\n]+)`", text))


def test_every_term_of_the_glossary_has_one_definition_and_an_owner(page: OpenPage) -> None:
    """Each row names the module that implements the term."""
    rows = page(GLOSSARY).rows("term", "meaning", "module")
    terms = [row[0] for row in rows]
    assert len(terms) == len(set(terms))
    assert len(terms) >= 80
    for term, meaning, module in rows:
        assert meaning, term
        assert re.fullmatch(r"`ourvidz(\.\w+)+`", module), term
        assert exists(module.strip("`")), f"{term}: {module}"


@pytest.mark.parametrize(
    "term",
    [
        *("ledger", "record", "run", "attempt", "claim", "fence", "lease", "outbox", "event", "dead letter"),
        *("sweep", "drain", "shim", "family", "profile", "eager", "pipeline stage", "preview", "batch item"),
        *("admission window", "catalog", "dialect", "outcome", "safety gate", "workflow", "OOM fallback"),
    ],
)
def test_the_glossary_defines_the_terms_of_the_code(page: OpenPage, term: str) -> None:
    """Module names and docstrings use these words without explanation."""
    assert term in {row[0] for row in page(GLOSSARY).rows("term", "meaning", "module")}


def test_the_overview_describes_every_package(page: OpenPage) -> None:
    """The table of packages is complete."""
    packages = {path.parent.name for path in (ROOT / "ourvidz").glob("*/__init__.py")}
    described = {
        name
        for row in page(OVERVIEW).rows("package", "owns")
        for name in re.findall(r"`ourvidz\.(\w+)`", row[0])
    }
    modules = {path.stem for path in (ROOT / "ourvidz").glob("*.py")}
    assert packages <= described <= packages | modules


def test_the_index_links_to_every_page(page: OpenPage) -> None:
    """The reading path is complete."""
    linked = {name for name in re.findall(r"\]\(([\w/.-]+\.md)[)#]", page(INDEX).text) if name[0] != "."}
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    decisions = {name for name in pages if name.startswith("decisions/0")}
    assert pages - decisions - {"index.md"} == linked


def test_the_index_of_decisions_names_every_decision(page: OpenPage) -> None:
    """The index of decisions links to each one."""
    linked = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", page("docs/decisions/README.md").text))
    assert linked == {path.name for path in (ROOT / "docs/decisions").glob("0*.md")}
