"""`ourvidz callbacks`: what callers were told, what they could not be told, and telling them again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.table import Column, Table

from ourvidz import dispatch
from ourvidz.callbacks import payload
from ourvidz.cli.console import print_json
from ourvidz.errors import NotFound
from ourvidz.ledger.record import DeliveryState, OutboxEvent
from ourvidz.wiring import control

STATES = get_args(DeliveryState)
EVERY_LETTER = 100_000

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def callbacks() -> None:
    """What callers were told, and what they could not be told."""


@callbacks.command("list")
@click.option("--state", type=click.Choice(STATES), default="dead", show_default=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@_as_json
def list_(state: DeliveryState, limit: int, as_json: bool) -> None:
    """List callbacks in one state, newest first."""
    rows = [summary(event) for event in control.current().ledger.letters(state, limit)]
    if as_json:
        print_json(rows)
        return
    table = Table(Column("event", no_wrap=True), "job", "kind", "deliveries", "status", "error", "at")
    for row in rows:
        status = "–" if row["last_status"] is None else str(row["last_status"])
        shown = (row["event_id"], row["job_id"], row["kind"], str(row["deliveries"]), status)
        table.add_row(*shown, row["last_error"] or "–", row["at"])
    Console().print(table if rows else f"No {state} callbacks.")


@callbacks.command("show")
@click.argument("event_id")
@_as_json
def show(event_id: str, as_json: bool) -> None:
    """Show one callback and the payload that its receiver gets."""
    at = control.current()
    event = at.ledger.event(event_id)
    if event is None:
        raise click.ClickException(f"no callback {event_id!r}")
    told = payload.build(event, worker_version=at.target.worker_version, assets_as=at.target.assets_as)
    if as_json:
        print_json(summary(event) | {"payload": told})
        return
    table = Table(show_header=False, box=None)
    for name, value in summary(event).items():
        table.add_row(name, "–" if value is None else str(value))
    console = Console()
    console.print(table)
    console.print_json(json.dumps(told))


@callbacks.command("replay")
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--all-dead", is_flag=True, help="Replay every dead letter.")
@_as_json
def replay(event_ids: tuple[str, ...], all_dead: bool, as_json: bool) -> None:
    """Send callbacks again, under the ids they had."""
    if all_dead == bool(event_ids):
        raise click.UsageError("name callbacks, or pass --all-dead")
    ledger = control.current().ledger
    chosen = [e.event_id for e in ledger.letters("dead", EVERY_LETTER)] if all_dead else list(event_ids)
    # The oldest first: callers hear of a job in order.
    replayed, unknown = _replay(reversed(chosen) if all_dead else chosen)
    if as_json:
        print_json({"replayed": replayed, "unknown": unknown})
    else:
        Console().print(f"{len(replayed)} replayed" + "".join(f"\nno callback {e!r}" for e in unknown))
    if unknown:
        raise click.exceptions.Exit(1)


def summary(event: OutboxEvent) -> dict[str, Any]:
    """One callback without its payload: no prompts, and of its URL only the host."""
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


def _replay(event_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    ledger = control.current().ledger
    replayed: list[str] = []
    unknown: list[str] = []
    for event_id in event_ids:
        try:
            event = ledger.replay(event_id)
        except NotFound:
            unknown.append(event_id)
            continue
        dispatch.deliver(event.job_id)
        replayed.append(event_id)
    return replayed, unknown


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
