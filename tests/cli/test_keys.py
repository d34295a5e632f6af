"""`ourvidz keys`: creates, lists, rotates and revokes stored keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from ourvidz.cli.keys import keys
from ourvidz.keys.store import KeyStore
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.wiring import control


@pytest.fixture
def store(tmp_path: Any, make_ledger: Callable[..., Ledger]) -> Iterator[KeyStore]:
    """The keys of the installation that the command uses, as a shim finds them."""
    settings = load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None)
    with capture_logs(), control.using(control.build(settings, ledger=make_ledger())) as current:
        yield KeyStore(current.ledger.connection, cache_s=0)


def run(*args: str) -> Result:
    """Run the command; it must succeed."""
    result = CliRunner().invoke(keys, args)
    assert result.exit_code == 0, result.output
    return result


def test_a_key_is_created_rotated_and_revoked(store: KeyStore) -> None:
    """Each secret is printed once, and never by the list."""
    made = json.loads(run("create", "shop", "--expires", "2d", "--user", "ann", "--json").stdout)
    (listed,) = json.loads(run("list", "--json").stdout)
    assert {name: listed[name] for name in ("id", "name", "state", "scopes", "user", "rate_class")} == {
        "id": made["id"], "name": "shop", "state": "active", "scopes": ["chat", "jobs"], "user": "ann",
        "rate_class": "default",
    }  # fmt: skip
    assert listed["expires_at"] > listed["created_at"]
    second = run("rotate", "shop", "--grace", "1h").stdout.strip()
    assert store.identify(made["key"]) == store.identify(second) is not None
    assert "shop" in run("list").stdout
    for secret in (made["key"], second):
        assert secret.rpartition("_")[2] not in run("list").stdout + run("list", "--json").stdout
    run("revoke", made["id"])
    assert store.identify(made["key"]) is store.identify(second) is None
    assert json.loads(run("list", "--json").stdout)[0]["state"] == "revoked"


def test_a_shim_that_needs_no_keys_is_pointed_out(store: KeyStore) -> None:
    """Otherwise an operator takes the installation for protected."""
    result = run("create", "shop", "--scope", "admin")
    assert "OURVIDZ_REQUIRE_KEYS=1" in result.stderr
    assert store.identify(result.stdout.strip()).scopes == {"admin"}


@pytest.mark.parametrize("args", [
    ("create", "a b"), ("create", "a", "--user", "../b"), ("create", "a", "--user", ""),
    ("create", "a", "--user-prefix", ""),
    ("create", "a", "--user", "b", "--user-prefix", "b"), ("create", "a", "--user", "b", "--scope", "admin"),
    ("create", "a", "--expires", "2"), ("create", "a", "--expires", "0s"),
    ("create", "a", "--scope", "lists"),
    ("rotate", "absent"), ("revoke", "absent"), ("rotate", "a", "--grace", "-1s"),
])  # fmt: skip
def test_what_makes_no_sense_creates_nothing(store: KeyStore, args: tuple[str, ...]) -> None:
    """A mistyped option must not make a key that may do more."""
    assert CliRunner().invoke(keys, args).exit_code != 0
    assert store.list() == []
