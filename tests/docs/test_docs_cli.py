"""The command line page lists every command and option."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from ourvidz.cli.main import cli
from ourvidz.cli.worker import FAMILIES, HELPERS

CLI = "docs/reference/cli.md"

OpenPage = Callable[[str], Any]


def commands(group: click.Command = cli, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its path, groups included."""
    if path:
        yield path, group
    if isinstance(group, click.Group):
        with click.Context(group) as context:
            for name in group.list_commands(context):
                command = group.get_command(context, name)
                assert command
                yield from commands(command, *path, name)


def heading(path: tuple[str, ...]) -> str:
    """Return the heading under which a command is described."""
    return f"`{' '.join(('ourvidz', *path))}`"


def options_in(section: str) -> set[str]:
    """Return the options that a section names."""
    return set(re.findall(r"`(--[a-z-]+)`", section))


def test_every_command_is_documented_and_no_other(page: OpenPage) -> None:
    """Each command has a section, and each section a command."""
    documented = [title for title in page(CLI).headings() if title.startswith("`ourvidz ")]
    assert sorted(documented) == sorted(heading(path) for path, _ in commands())


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value))
def test_every_option_is_documented_and_no_other(
    page: OpenPage, path: tuple[str, ...], command: click.Command
) -> None:
    """Options are described in the section of their command, shared options in that of their group."""
    options = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    own = options_in(page(CLI).section(heading(path)))
    shared = {
        name
        for length in range(1, len(path))
        for name in options_in(page(CLI).section(heading(path[:length])))
    }
    assert options <= own | shared
    if not isinstance(command, click.Group):
        assert own <= options


def test_every_worker_is_documented(page: OpenPage) -> None:
    """Operators find the names of all workers on the page."""
    sections = {command: page(CLI).section(heading((command,))) for command in ("up", "worker")}
    assert [name for name in FAMILIES if f"`{name}`" not in sections["up"]] == []
    assert [name for name in (*FAMILIES, *HELPERS) if f"`{name}`" not in sections["worker"]] == []
