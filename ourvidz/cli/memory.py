"""`ourvidz memory`: shows the memory of the GPUs and moves models, over HTTP."""

from __future__ import annotations

from typing import Any

import click

from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.cli.jobs import connect, shim_options

MODELS = click.Choice(["sdxl", "wan", "qwen_instruct", "qwen_base"])
WATCH_S = 1.0
"""Pause between two readings of `status --watch`."""

model_argument = click.argument("model", type=MODELS)


@click.group(short_help="Show the memory of the GPUs, and move models.")
def memory() -> None:
    """Show the memory of the GPUs, and move models."""


@memory.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@shim_options
def status(watch: bool, url: str | None, key: str | None, as_json: bool) -> None:
    """Show who holds the memory of each GPU, and who waits for it."""
    import time

    shim = connect(url, key)
    while True:
        document = shim.get("/memory/status")
        if as_json:
            print_json(document)
        else:
            _show(document)
        if not watch:
            return
        time.sleep(WATCH_S)


@memory.command()
@shim_options
def report(url: str | None, key: str | None, as_json: bool) -> None:
    """Show how tight memory is, and what can be done about it."""
    document = connect(url, key).get("/memory/report")
    if as_json:
        print_json(document)
        return
    click.echo(f"pressure: {document['pressure_level']}, free: {document['available_vram']} MiB")
    for line in document["recommendations"]:
        click.echo(line)


@memory.command()
@model_argument
@click.option("--force", is_flag=True, help="Others must leave for it, even pinned ones.")
@shim_options
def load(model: str, force: bool, url: str | None, key: str | None, as_json: bool) -> None:
    """Bring a model onto the GPU if enough memory is free."""
    _move("load", model, force, url, key, as_json)


@memory.command()
@model_argument
@click.option("--force", is_flag=True, help="Although it is pinned.")
@shim_options
def unload(model: str, force: bool, url: str | None, key: str | None, as_json: bool) -> None:
    """Free the memory of a model; its next job loads it again."""
    _move("unload", model, force, url, key, as_json)


@memory.command()
@model_argument
@click.option("--off", is_flag=True, help="Let it leave again when others need its memory.")
@shim_options
def pin(model: str, off: bool, url: str | None, key: str | None, as_json: bool) -> None:
    """Keep a model on the GPU: it leaves only by force."""
    document = connect(url, key).post("/memory/pin", {"which": model, "pinned": not off})
    if as_json:
        print_json(document)
    else:
        click.echo(f"{model} is {'pinned' if document['pinned'] else 'not pinned'}")


def _move(action: str, model: str, force: bool, url: str | None, key: str | None, as_json: bool) -> None:
    document = connect(url, key).post(f"/memory/{action}", {"which": model, "force": force})
    if as_json:
        print_json(document)
    elif document["asked"]:
        click.echo(f"asked {', '.join(document['asked'])}: {action} {model} after the current job")
    else:
        click.echo(f"no worker with {model} is online")


def _show(document: dict[str, Any]) -> None:
    """A bar, the residents and the waits of each GPU."""
    if not document["devices"]:
        click.echo("No worker shares a GPU.")
    for device in document["devices"]:
        budget = f"budget {device['budget']}, used {device['used']} of {device['total']} MiB"
        click.echo(f"{device['id']}: {budget}, pressure {device['pressure']}")
        rows = [
            TableRow((part["id"], part["state"], f"{part['mib']}", _notes(part), f"{part['seconds']:.0f} s"))
            for part in device["residents"]
        ]
        print_table(("part", "state", "MiB", "", "since"), rows)
        for wait in device["waiting"]:
            asks = ", ".join(wait["asks"]) or "nobody"
            since = f"{wait['seconds']:.0f} s"
            click.echo(f"{wait['family']} has waited {since} for {wait['needed_mib']} MiB, asks {asks}")
        for line in device["stuck"]:
            click.echo(f"stuck: {line}")


def _notes(part: dict[str, Any]) -> str:
    return " ".join(name for name in ("busy", "pinned") if part[name])
