"""The documentation says what the code says: settings, errors, types, commands, links, examples."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from pydantic.fields import FieldInfo

import ourvidz
from ourvidz import errors
from ourvidz.cli.main import cli
from ourvidz.jobs.catalog import ALIASES, CATALOG, JobType
from ourvidz.settings import Settings

ROOT = Path(ourvidz.__file__).parents[1]
ERRORS, PAYLOAD, SETTINGS, CLI = (
    f"docs/reference/{name}.md" for name in ("errors", "payload", "settings", "cli")
)
TROUBLESHOOTING = "docs/troubleshooting.md"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NOTHING = "–"

OpenPage = Callable[[str], Any]


def code(text: str) -> str:
    """What stands in the backticks of a cell."""
    return text.strip("`")


# -- settings


def shown(field: FieldInfo) -> str:
    """A default as the table writes it."""
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def test_the_settings_table_is_the_settings(page: OpenPage) -> None:
    """An operator who reads the table knows every variable and what happens without it."""
    documented = {code(row[0]): code(row[1]) for row in page(SETTINGS).rows("variable", "default")}
    real = {str(field.validation_alias): shown(field) for field in Settings.model_fields.values()}
    assert documented == real


def test_a_setting_with_few_values_names_them_all(page: OpenPage) -> None:
    """Nobody should have to read the source for the words a variable takes."""
    meanings = {code(row[0]): row[2] for row in page(SETTINGS).rows("variable", "default")}
    for field in Settings.model_fields.values():
        if get_origin(field.annotation) is Literal:
            missing = [
                w for w in get_args(field.annotation) if f"`{w}`" not in meanings[str(field.validation_alias)]
            ]
            assert missing == [], field.validation_alias


def test_a_setting_that_nothing_reads_is_marked(page: OpenPage) -> None:
    """A variable without effect costs an operator an evening unless the table says so."""
    read = {
        node.attr
        for path in (ROOT / "ourvidz").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    idle = {str(f.validation_alias) for name, f in Settings.model_fields.items() if name not in read}
    marked = {code(r[0]) for r in page(SETTINGS).rows("variable", "default") if "no effect yet" in r[2]}
    assert marked == idle - {"OURVIDZ_STORAGE"}, "OURVIDZ_STORAGE has one value, and says so"


# -- errors and types


def test_the_error_table_is_the_error_tree(page: OpenPage) -> None:
    """Callers branch on these codes; who must act is the branch of the tree."""
    actors = {
        errors.CallerError: "caller",
        errors.FallbackError: "nobody",
        errors.OperatorError: "operator",
        errors.OurError: "us",
    }
    real = {
        name: [
            str(kind.http_status),
            next(actor for branch, actor in actors.items() if issubclass(kind, branch)),
            "yes" if kind.retryable else "no",
            f"{kind.attempts}{' (the step)' if kind.scope == 'step' else ''}",
        ]
        for name, kind in errors.by_code().items()
    }
    assert {code(row[0]): row[1:5] for row in page(ERRORS).rows("code", "HTTP")} == real


def test_every_error_code_has_advice(page: OpenPage) -> None:
    """A caller or operator who looks up a code finds what to do."""
    advised = [code(row[0]) for row in page(TROUBLESHOOTING).rows("code", "the caller")]
    assert sorted(advised) == sorted(errors.by_code())


def described(row: JobType) -> list[str]:
    """A row of the catalog as the table writes it."""
    low, high = row.expected_s
    return [
        row.queue,
        *(NOTHING if value is None else str(value) for value in (row.steps, row.guidance_scale, row.frames)),
        row.output,
        ", ".join(map(str, row.num_images)),
        "yes" if row.enhance else "no",
        f"{high:g}" if low == high else f"{low:g}–{high:g}",
        f"{row.time_limit_s:g}",
    ]


def test_the_catalog_table_is_the_catalog(page: OpenPage) -> None:
    """What a payload leaves open is decided by these numbers."""
    documented = {code(row[0]): row[1:] for row in page(PAYLOAD).rows("type", "queue", "steps")}
    assert documented == {name: described(row) for name, row in CATALOG.items()}
    assert {code(row[0]): code(row[1]) for row in page(PAYLOAD).rows("alias", "means")} == ALIASES


# -- the command line


def commands(group: click.Command = cli, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command under its path, groups included."""
    if path:
        yield path, group
    if isinstance(group, click.Group):
        with click.Context(group) as context:
            for name in group.list_commands(context):
                found = group.get_command(context, name)
                assert found
                yield from commands(found, *path, name)


def heading(path: tuple[str, ...]) -> str:
    return f"`{' '.join(('ourvidz', *path))}`"


def test_every_command_is_documented_and_no_other(page: OpenPage) -> None:
    """The page is the map of the command line."""
    documented = [title for title in page(CLI).headings() if title.startswith("`ourvidz ")]
    assert sorted(documented) == sorted(heading(path) for path, _ in commands())


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value))
def test_every_option_is_documented_and_no_other(
    page: OpenPage, path: tuple[str, ...], command: click.Command
) -> None:
    """An option stands in its command's section, or in its group's for all of them."""
    real = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    own = set(re.findall(r"`(--[a-z-]+)`", page(CLI).section(heading(path))))
    shared = {
        name
        for length in range(1, len(path))
        for name in re.findall(r"`(--[a-z-]+)`", page(CLI).section(heading(path[:length])))
    }
    assert real <= own | shared
    if not isinstance(command, click.Group):
        assert own <= real


# -- every page


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(page: OpenPage, name: str) -> None:
    """A broken link is where a newcomer stops reading."""
    broken = []
    for target in LINK.findall(page(name).prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        anchors = map(slug, page(str(there.resolve().relative_to(ROOT))).headings()) if anchor else ()
        if not there.exists() or (anchor and anchor not in anchors):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_every_json_block_is_json(page: OpenPage, name: str) -> None:
    """Examples are copied: they have to parse."""
    for block in page(name).blocks("json"):
        json.loads(block.text)
