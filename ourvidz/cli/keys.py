"""`ourvidz keys`: creates, lists, rotates and revokes the API keys that are stored in the ledger's server."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import click

from ourvidz.cli.console import TableRow, print_json, print_note, print_table
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.keys.caller import BOUND_SCOPES, DEFAULT_RATE_CLASS, SCOPES
from ourvidz.keys.store import StoredKey, check_binding
from ourvidz.settings import Settings
from ourvidz.wiring import control

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A whole number with a unit, such as `90d`, `12h`, `30m` or `45s`; in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The duration in seconds."""
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} must be a number with a unit: 90d, 12h, 30m or 45s", param, ctx)
        return int(match[1]) * UNITS_S[match[2]]


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys.

    They are stored as hashes in the Redis server, beside the keys of OURVIDZ_API_KEYS. Every shim accepts
    and refuses them within a second.
    """


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(sorted(SCOPES)), multiple=True,
              help="What it may do; jobs and chat by default.")  # fmt: skip
@click.option("--expires", type=Duration(), help="How long it is valid: 90d, 12h; for ever by default.")
@click.option("--rate-class", default=DEFAULT_RATE_CLASS, show_default=True, help="Its limits.")
@click.option("--user", help="The only user whose jobs and files it sees.")
@click.option("--user-prefix", help="What the ids of all users begin with that it sees.")
@_as_json
def create(name: str, scopes: tuple[str, ...], expires: int | None, rate_class: str, user: str | None,
           user_prefix: str | None, as_json: bool) -> None:  # fmt: skip
    """Create a key, and print it: it is shown only now."""
    if not NAME.fullmatch(name) or not NAME.fullmatch(rate_class):
        raise click.UsageError("a name has up to 64 letters, digits and . _ -")
    for value in (user, user_prefix):
        if value is not None and not IDENTIFIER.fullmatch(value):
            raise click.UsageError("a user or prefix has the characters of user ids")
    if expires == 0:
        raise click.UsageError("--expires must be longer")
    granted = frozenset(scopes) or BOUND_SCOPES
    binding = check_binding(user, user_prefix, granted)
    app = control.current()
    key_id, key = app.keys.create(name, granted, rate_class=rate_class, binding=binding, lifetime_s=expires)
    _print_key(key_id, key, as_json)
    if not needs_keys(app.settings):
        print_note("a shim with these settings also answers without a key: set OURVIDZ_REQUIRE_KEYS=1")


@keys.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """List the keys, oldest first, without their secrets."""
    stored = control.current().keys.list()
    if as_json:
        print_json([summary(key) for key in stored])
        return
    if not stored:
        click.echo("No stored keys.")
        return
    rows = [
        TableRow((key.id, key.name, key.state), (", ".join(sorted(key.scopes)), *_details(key)))
        for key in stored
    ]
    print_table(("id", "name", "state"), rows)


@keys.command("rotate")
@click.argument("key", metavar="NAME|ID")
@click.option("--grace", type=Duration(), default="24h", show_default=True,
              help="How long the secret of now stays valid; 0s ends it.")  # fmt: skip
@_as_json
def rotate(key: str, grace: int, as_json: bool) -> None:
    """Give a key a new secret, and print it. The one of now stays valid for a while, older ones end."""
    store = control.current().keys
    key_id = store.resolve(key)
    _print_key(key_id, store.rotate(key_id, grace_s=grace), as_json)


@keys.command("revoke")
@click.argument("key", metavar="NAME|ID")
@_as_json
def revoke(key: str, as_json: bool) -> None:
    """Revoke a key: every shim refuses it, and the tokens that were made with it, within a second."""
    store = control.current().keys
    key_id = store.resolve(key)
    store.revoke(key_id)
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        click.echo(f"{key_id} is revoked.")


def summary(key: StoredKey) -> dict[str, Any]:
    """A key as JSON, without its secrets."""
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state,
        "scopes": sorted(key.scopes),
        "rate_class": key.rate_class,
        "user": key.binding.user_id if key.binding else None,
        "user_prefix": key.binding.prefix if key.binding else None,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "rotated_at": _iso(key.rotated_at),
        "previous_until": _iso(key.previous_until),
        "revoked_at": _iso(key.revoked_at),
    }


def needs_keys(settings: Settings) -> bool:
    """Whether a shim with these settings answers nobody without a key."""
    worker_keys = (settings.wan_worker_api_key, settings.chat_worker_api_key, settings.sdxl_worker_api_key)
    return settings.require_keys or bool(settings.api_keys) or any(worker_keys)


def _details(key: StoredKey) -> list[str]:
    """What the list says about a key beside its scopes."""
    details = []
    if key.binding is not None:
        details.append(f"user {key.binding.user_id or f'{key.binding.prefix}…'}")
    if key.rate_class != DEFAULT_RATE_CLASS:
        details.append(f"rate class {key.rate_class}")
    times = (("until", key.expires_at), ("previous secret until", key.previous_until))
    return [*details, *(f"{name} {_iso(at)}" for name, at in times if at is not None)]


def _print_key(key_id: str, key: str, as_json: bool) -> None:
    if as_json:
        print_json({"id": key_id, "key": key})
    else:
        click.echo(key)


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
