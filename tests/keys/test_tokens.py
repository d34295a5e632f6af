"""Tokens for browsers: signed, short-lived, for one job or one user."""

from __future__ import annotations

import base64
import json

import pytest

from ourvidz.keys.tokens import MAX_LIFETIME_S, Tokens
from ourvidz.ledger.connection import Connection


@pytest.fixture
def tokens(connection: Connection) -> Tokens:
    """The tokens of an installation."""
    return Tokens(connection, cache_s=0)


def test_a_token_says_what_it_was_made_for(tokens: Tokens, connection: Connection) -> None:
    """In every shim: they share the secret."""
    token, grant = tokens.make(key_id="k", lifetime_s=60, job_id="job-1", user_id="ann")
    assert Tokens(connection).read(token) == grant
    assert (grant.key_id, grant.job_id, grant.user_id) == ("k", "job-1", "ann")


def test_a_token_ends_after_an_hour_at_most(tokens: Tokens, connection: Connection) -> None:
    """Whoever asks for more gets an hour; one that has ended is none."""
    now = connection.client.time()[0]
    _, grant = tokens.make(key_id="k", lifetime_s=99999, job_id="job-1", user_id=None)
    assert grant.expires_at - now <= MAX_LIFETIME_S + 1
    ended, _ = tokens.make(key_id="k", lifetime_s=-1, job_id="job-1", user_id=None)
    assert tokens.read(ended) is None


def test_a_changed_token_is_none(tokens: Tokens) -> None:
    """Neither another user, nor a later end, nor another signature."""
    token, _ = tokens.make(key_id="k", lifetime_s=60, job_id=None, user_id="ann")
    body, _, signature = token.removeprefix("ovt_").partition(".")
    fields = json.loads(base64.urlsafe_b64decode(body + "=="))
    for change in ({"u": "bob"}, {"e": fields["e"] + 1}, {"k": None}, {"u": None}):
        forged = base64.urlsafe_b64encode(json.dumps(fields | change).encode()).decode().rstrip("=")
        assert tokens.read(f"ovt_{forged}.{signature}") is None
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    parts = (
        "",
        body,
        f"{body}.",
        f".{signature}",
        f"{body}.{flipped}",
        f"{body}.{signature}x",
        f"é.{signature}",
    )
    for damaged in (*(f"ovt_{part}" for part in parts), "", token[4:], token + "A" * 5000):
        assert tokens.read(damaged) is None


def test_all_tokens_end_with_the_secret(tokens: Tokens) -> None:
    """After a leak of the Redis server."""
    token, _ = tokens.make(key_id="k", lifetime_s=60, job_id=None, user_id="ann")
    tokens.replace_secret()
    assert tokens.read(token) is None
