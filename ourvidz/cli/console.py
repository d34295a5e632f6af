"""Terminal output: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

DEFAULT_COLUMNS = 80
"""Line width where neither `COLUMNS` nor a terminal gives one."""
MAX_CELL = 40
"""Widest column but the last. A longer cell moves only the rest of its own line to the right."""
INDENT = "    "
_GAP = "  "


@dataclass(frozen=True, slots=True)
class TableRow:
    """One table row: short cells in columns, and long values (paths, errors) on indented lines below."""

    cells: tuple[str, ...]
    details: tuple[str, ...] = ()


def print_note(line: str) -> None:
    """Print one line on standard error."""
    click.echo(line, err=True)


def print_json(document: Any) -> None:
    """Print a document as one line of JSON on standard output."""
    click.echo(json.dumps(document, default=str))


def print_table(
    header: Sequence[str], rows: Sequence[TableRow], *, colours: Mapping[str, str] | None = None
) -> None:
    """Print a table on standard output, as wide as the terminal. `colours`: cell text → click colour."""
    width = shutil.get_terminal_size((DEFAULT_COLUMNS, 24)).columns
    for line in format_table(header, rows, width=width, colours=colours or {}):
        click.echo(line)


def format_table(
    header: Sequence[str], rows: Sequence[TableRow], *, width: int, colours: Mapping[str, str]
) -> list[str]:
    """The lines of a table for `width` columns of text; an empty header has no line.

    The last cell and the details wrap between words. A word is never split, so paths and ids can be copied:
    a last cell with a word that is too long for its column is moved to the indented lines below.
    """
    cells = [tuple(header), *(row.cells for row in rows)] if header else [row.cells for row in rows]
    widths = [min(MAX_CELL, max(map(len, column))) for column in zip(*cells, strict=True)][:-1]
    lines = _format_row(TableRow(tuple(header)), widths, width, {}) if header else []
    for row in rows:
        lines += _format_row(row, widths, width, colours)
    return lines


def _format_row(row: TableRow, widths: list[int], width: int, colours: Mapping[str, str]) -> list[str]:
    """The lines of one row: the last cell wraps under its column, and details follow indented."""
    *cells, last = row.cells
    details = row.details
    left = "".join(
        _coloured(cell, colours) + " " * (column - len(cell)) + _GAP
        for cell, column in zip(cells, widths, strict=True)
    )
    room = width - sum(widths) - len(_GAP) * len(widths)
    if max(map(len, last.split()), default=0) > room:
        last, details = "", (last, *details)
    first, *rest = _wrap(last, room) or [""]
    hanging = " " * (width - room)
    below = [INDENT + line for text in details for line in _wrap(text, width - len(INDENT))]
    return [(left + _coloured(first, colours)).rstrip(), *(hanging + line for line in rest), *below]


def _wrap(text: str, width: int) -> list[str]:
    """The lines of a text, wrapped between words only."""
    wrapper = textwrap.TextWrapper(max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [line for paragraph in text.splitlines() for line in wrapper.wrap(paragraph)]


def _coloured(cell: str, colours: Mapping[str, str]) -> str:
    """The cell with the escape codes of its colour, if it has one."""
    return click.style(cell, fg=colours[cell]) if cell in colours else cell


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error what the command waits for; yields a function that replaces the text.

    On a terminal a spinner; otherwise one line each time the text changes.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(text) as status:
            yield lambda text: status.update(text)
        return
    current = ""

    def show(text: str) -> None:
        nonlocal current
        if text != current:
            current = text
            print_note(text)

    show(text)
    yield show
