"""`ourvidz storage`: prepares the storage of assets."""

from __future__ import annotations

import click

from ourvidz.cli.console import print_json
from ourvidz.settings import settings
from ourvidz.wiring.storage import open_store


@click.group(short_help="Create the buckets of the storage.")
def storage() -> None:
    """Prepare the storage of assets that the settings choose."""


@storage.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init(as_json: bool) -> None:
    """Create what is missing, buckets or the directory, and store, read and delete a test file."""
    store = open_store(settings())
    created = store.create_buckets()
    store.check()
    if as_json:
        print_json({"storage": store.location, "created": created})
        return
    click.echo(f"{store.location}: {', '.join(created)} created" if created else f"{store.location}: ready")
