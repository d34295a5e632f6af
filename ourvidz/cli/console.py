"""Talking to the person: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def say(line: str) -> None:
    """One line for the person."""
    click.echo(line, err=True)


def emit(document: Any) -> None:
    """One line of JSON for a program."""
    click.echo(json.dumps(document, default=str))


@contextmanager
def waiting(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is being waited for: a spinner on a terminal, else a line whenever it changes."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(first) as status:
            yield lambda text: status.update(text)
        return
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        if text != shown:
            shown = text
            say(text)

    show(first)
    yield show
