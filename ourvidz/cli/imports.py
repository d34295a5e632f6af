"""`ourvidz imports`: the entries of raw lists that were refused, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.records.imports import RefusedImport
from ourvidz.wiring import control

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ids = click.argument("refused_ids", nargs=-1, metavar="[ID]...")
_all = click.option("--all", "all_", is_flag=True, help="All of them, oldest first.")


@click.group(short_help="List and repeat refused entries of raw lists.")
def imports() -> None:
    """List, show, retry and discard entries of raw lists that were refused."""


@imports.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@_as_json
def list_(limit: int, as_json: bool) -> None:
    """List refused entries, newest first, without what is in them."""
    kept = control.current().ledger.refused_imports()[::-1][:limit]
    if as_json:
        print_json([_summary(refused) for refused in kept])
        return
    if not kept:
        click.echo("No refused entries.")
        return
    table = [
        TableRow((refused.refused_id, refused.list_name, refused.code), (_iso(refused.at), refused.reason))
        for refused in kept
    ]
    print_table(("entry", "list", "code"), table)


@imports.command()
@click.argument("refused_id", metavar="ID")
@_as_json
def show(refused_id: str, as_json: bool) -> None:
    """Show a refused entry with what is in it, which may be a prompt."""
    for refused in control.current().ledger.refused_imports():
        if refused.refused_id == refused_id:
            break
    else:
        raise click.ClickException(f"no refused entry {refused_id!r}")
    document = _summary(refused) | {"entry": refused.entry}
    if as_json:
        print_json(document)
    else:
        rows = [TableRow((name, "–" if value is None else str(value))) for name, value in document.items()]
        print_table((), rows)


@imports.command()
@_ids
@_all
@_as_json
def retry(refused_ids: tuple[str, ...], all_: bool, as_json: bool) -> None:
    """Put entries back into their lists, where the keeper imports them again."""
    lists = control.current().settings.import_lists

    def put_back(refused: RefusedImport) -> bool:
        if refused.list_name not in lists:
            raise click.ClickException(
                f"nobody imports {refused.list_name!r}: add it to OURVIDZ_IMPORT_LISTS, also of the keeper"
            )
        return control.current().ledger.take_refused_import(refused, back=True)

    _change(refused_ids, put_back, all_=all_, change="retried", as_json=as_json)


@imports.command()
@_ids
@_all
@_as_json
def discard(refused_ids: tuple[str, ...], all_: bool, as_json: bool) -> None:
    """Delete refused entries."""
    take = control.current().ledger.take_refused_import
    _change(
        refused_ids, lambda refused: take(refused, back=False), all_=all_, change="discarded", as_json=as_json
    )


def _change(
    refused_ids: tuple[str, ...],
    make: Callable[[RefusedImport], bool],
    *,
    all_: bool,
    change: str,
    as_json: bool,
) -> None:
    """Change the entries with these ids, or all, and print which. Exit status 1 if one is not kept."""
    if all_ == bool(refused_ids):
        raise click.UsageError("name entries, or pass --all")
    kept = {refused.refused_id: refused for refused in control.current().ledger.refused_imports()}
    selected = list(kept) if all_ else list(dict.fromkeys(refused_ids))
    changed = [each for each in selected if each in kept and make(kept[each])]
    unknown = [each for each in selected if each not in changed]
    if as_json:
        print_json({change: changed, "unknown": unknown})
    else:
        click.echo(f"{len(changed)} {change}" + "".join(f"\nno refused entry {each!r}" for each in unknown))
    if unknown:
        raise click.exceptions.Exit(1)


def _summary(refused: RefusedImport) -> dict[str, Any]:
    """An entry for a list: without its content, except for the id of its job."""
    return {
        "id": refused.refused_id,
        "at": _iso(refused.at),
        "list": refused.list_name,
        "job_id": _job_id(refused.entry),
        "code": refused.code,
        "field": refused.wrong_field,
        "reason": refused.reason,
    }


def _job_id(entry: str) -> str | None:
    """The id in an entry that is a JSON object, else None."""
    try:
        payload = json.loads(entry)
    except ValueError:
        return None
    job_id = (payload.get("id") or payload.get("job_id")) if isinstance(payload, dict) else None
    return job_id if isinstance(job_id, str) else None


def _iso(at: float) -> str:
    """ISO 8601 in UTC, from seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
