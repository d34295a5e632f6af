"""`ourvidz callbacks`: lists callbacks by delivery state, shows one, and sends them again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlsplit

import click
from rich.console import Console

from ourvidz.callbacks import payload
from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.errors import NotFound
from ourvidz.records.record import DeliveryState, OutboxEvent
from ourvidz.wiring import control

STATES = get_args(DeliveryState)
MAX_DEAD_LETTERS = 100_000
"""Most dead letters that one `replay --all-dead` sends."""

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def callbacks() -> None:
    """List, show and replay callbacks."""


@callbacks.command("list")
@click.option("--state", type=click.Choice(STATES), default="dead", show_default=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@_as_json
def list_(state: DeliveryState, limit: int, as_json: bool) -> None:
    """List callbacks in one state, newest first."""
    rows = [summary(event) for event in control.current().ledger.list_events(state, limit)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo(f"No {state} callbacks.")
        return
    table = [
        TableRow((row["event_id"], row["kind"], row["at"]), (f"job {row['job_id']}", _deliveries(row)))
        for row in rows
    ]
    print_table(("event", "kind", "at"), table)


@callbacks.command("show")
@click.argument("event_id")
@_as_json
def show(event_id: str, as_json: bool) -> None:
    """Show one callback and the payload that its receiver gets."""
    app = control.current()
    event = app.ledger.get_event(event_id)
    if event is None:
        raise click.ClickException(f"no callback {event_id!r}")
    document = payload.build(event, worker_version=app.target.worker_version, assets_as=app.target.assets_as)
    if as_json:
        print_json(summary(event) | {"payload": document})
        return
    fields = summary(event).items()
    print_table((), [TableRow((name, "–" if value is None else str(value))) for name, value in fields])
    Console().print_json(json.dumps(document))


@callbacks.command("replay")
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--all-dead", is_flag=True, help="Replay every dead letter.")
@_as_json
def replay(event_ids: tuple[str, ...], all_dead: bool, as_json: bool) -> None:
    """Send callbacks again, under the ids they had.

    Registrations of workers are left out: an old one would undo a newer one, which a keeper sends by itself.
    """
    if all_dead == bool(event_ids):
        raise click.UsageError("name callbacks, or pass --all-dead")
    ledger = control.current().ledger
    refused = [] if all_dead else [each for each in event_ids if _is_registration(each)]
    if refused:
        raise click.UsageError(f"{refused[0]} is a registration: a keeper sends the newest one by itself")
    selected = (
        [e.event_id for e in ledger.list_events("dead", MAX_DEAD_LETTERS) if not e.is_registration]
        if all_dead
        else list(event_ids)
    )
    # The list is newest first; the events of a job must be sent in their order.
    replayed, unknown = _replay(reversed(selected) if all_dead else selected)
    if as_json:
        print_json({"replayed": replayed, "unknown": unknown})
    else:
        click.echo(f"{len(replayed)} replayed" + "".join(f"\nno callback {e!r}" for e in unknown))
    if unknown:
        raise click.exceptions.Exit(1)


def summary(event: OutboxEvent) -> dict[str, Any]:
    """One callback for a list: without its payload (no prompts), and only the host of its URL."""
    url = control.current().target.url(event.callback_url)
    return {
        "event_id": event.event_id,
        "job_id": event.job_id,
        "run": event.run,
        "sequence": event.sequence,
        "kind": event.kind,
        "state": event.state,
        "host": urlsplit(url).hostname if url else None,
        "deliveries": event.deliveries,
        "last_status": event.last_status,
        "last_error": event.last_error,
        "at": _iso(event.at),
        "due_at": _iso(event.due_at) if event.state == "pending" else None,
        "settled_at": _iso(event.settled_at) if event.settled_at is not None else None,
    }


def _is_registration(event_id: str) -> bool:
    event = control.current().ledger.get_event(event_id)
    return event is not None and event.is_registration


def _replay(event_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Replay each callback; returns the ids that were replayed, and those that do not exist."""
    ledger = control.current().ledger
    replayed: list[str] = []
    unknown: list[str] = []
    for event_id in event_ids:
        try:
            ledger.replay(event_id)
        except NotFound:
            unknown.append(event_id)
            continue
        replayed.append(event_id)
    return replayed, unknown


def _deliveries(row: dict[str, Any]) -> str:
    """How often a callback was sent, and the result of the last time."""
    names = {"deliveries": "deliveries", "last_status": "last status", "last_error": "last error"}
    return ", ".join(f"{text}: {row[name]}" for name, text in names.items() if row[name] is not None)


def _iso(at: float) -> str:
    """ISO 8601 in UTC, from seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
