"""`ourvidz users`: erases all that is stored of a user, over HTTP."""

from __future__ import annotations

import time
from typing import Any

import click

from ourvidz.cli.console import print_json
from ourvidz.cli.jobs import connect, shim_options

POLL_S = 1.0
COUNTS = ("jobs", "files", "callbacks", "refused_imports", "usage_rows")


@click.group()
def users() -> None:
    """Erase what is stored of users."""


@users.command("erase")
@click.argument("user_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=click.IntRange(min=0), default=120, show_default=True,
              help="Seconds to wait for jobs that stop.")  # fmt: skip
@shim_options
def erase(user_id: str, yes: bool, timeout: int, url: str | None, key: str | None, as_json: bool) -> None:
    """Erase all jobs, files, references and callbacks of USER_ID, and make its usage anonymous.

    Running jobs are cancelled. Nothing of it can be brought back. Exit status 1 if something is left; the
    keeper goes on, and the command can be repeated.
    """
    if not yes:
        click.confirm(f"Erase everything of {user_id}?", abort=True)
    shim, deadline = connect(url, key), time.monotonic() + timeout
    total = dict.fromkeys(COUNTS, 0)
    while True:
        answer: dict[str, Any] = shim.delete(f"/users/{user_id}/data")
        total = {name: total[name] + answer[name] for name in COUNTS}
        if answer["complete"] or time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    if as_json:
        print_json(answer | total)
    else:
        click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in total.items()))
        click.echo(f"Nothing is left of {user_id}." if answer["complete"] else _left(answer))
    if not answer["complete"]:
        raise click.exceptions.Exit(1)


def _left(answer: dict[str, Any]) -> str:
    """What an erasure that is not complete has left."""
    if answer["running"] or answer["unreadable"]:
        return f"Left: {answer['running']} running jobs, {answer['unreadable']} that cannot be read."
    return "Left: the Redis server has not written its file anew; see the reference of operators."
