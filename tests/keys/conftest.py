"""Fixtures: stores of keys and tokens on a Redis server, under a prefix of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ourvidz.keys.store import KeyStore
from ourvidz.ledger.connection import Connection
from ourvidz.ledger.store import Ledger


@pytest.fixture
def connection(make_ledger: Callable[..., Ledger]) -> Connection:
    """A connection to a Redis server."""
    return make_ledger().connection


@pytest.fixture
def keys(connection: Connection) -> KeyStore:
    """A store that reads every key each time."""
    return KeyStore(connection, cache_s=0)
