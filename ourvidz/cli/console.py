"""Terminal output: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def print_note(line: str) -> None:
    """Print one line on standard error."""
    click.echo(line, err=True)


def print_json(document: Any) -> None:
    """Print a document as one line of JSON on standard output."""
    click.echo(json.dumps(document, default=str))


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
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        if text != shown:
            shown = text
            print_note(text)

    show(text)
    yield show
