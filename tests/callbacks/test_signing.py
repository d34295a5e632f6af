"""Callbacks are signed as receivers expect, and our own receiver rejects everything else."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.callbacks.signing import Verification, signed_headers, verify
from ourvidz.errors import SettingsError

AT = datetime(2027, 1, 15, 8, 0, 0, 500_000, tzinfo=UTC)
BODY = '{"job_id":"job-1","prompt":"côte"}'.encode()
KEYS = [b"first key of thirty-two bytes ok", b"second key, thirty-two bytes too"]
WEBHOOK = ["whsec_" + base64.b64encode(key).decode() for key in KEYS]
EVENT = "msg_0123"


def signed(
    body: bytes = BODY, callback: tuple[str, ...] = ("s1",), webhook: list[str] = WEBHOOK[:1]
) -> dict[str, str]:
    return signed_headers(
        body, event_id=EVENT, at=AT, service_key="key", callback_secrets=callback, webhook_secrets=webhook
    )


def check(body: bytes, request_headers: dict[str, str], *, now: datetime = AT) -> Verification:
    return verify(body, request_headers, callback_secrets=("s1",), webhook_secrets=WEBHOOK[:1], now=now)


def test_the_bearer_is_the_service_key() -> None:
    """The gateway of edge functions requires it."""
    assert signed()["Authorization"] == "Bearer key"


def test_the_callback_signature_is_the_hex_hmac_of_the_body() -> None:
    """Computed here as the live receiver does, without the project's code."""
    expected = hmac.new(b"s1", BODY, hashlib.sha256).hexdigest()
    assert signed(callback=("s1", "s2"))["X-Callback-Signature"] == f"sha256={expected}"


def test_the_webhook_headers_follow_the_standard() -> None:
    """Computed here without the library. Every secret signs, so receivers can rotate theirs."""
    sent = signed(webhook=WEBHOOK)
    stamp = "1800000000"
    text = b".".join([EVENT.encode(), stamp.encode(), BODY])
    expected = [
        "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode() for key in KEYS
    ]
    assert sent["webhook-id"] == EVENT
    assert sent["webhook-timestamp"] == stamp
    assert sent["webhook-signature"].split(" ") == expected


def test_a_time_in_another_zone_is_the_same_time() -> None:
    """The library would read the local time of any zone as UTC."""
    elsewhere = AT.astimezone(timezone(timedelta(hours=5)))
    again = signed_headers(BODY, event_id=EVENT, at=elsewhere, webhook_secrets=WEBHOOK)
    assert again["webhook-signature"] == signed(webhook=WEBHOOK)["webhook-signature"]


def test_without_secrets_only_the_trace_is_sent() -> None:
    """No empty bearer token, and no signature with an empty secret."""
    assert list(signed_headers(BODY, event_id=EVENT, at=AT)) == ["traceparent"]


def test_all_deliveries_of_an_event_share_a_trace() -> None:
    """Each delivery is a span in the trace of its event."""
    first = signed_headers(BODY, event_id=EVENT, at=AT)["traceparent"].split("-")
    second = signed_headers(BODY, event_id=EVENT, at=AT + timedelta(seconds=5))["traceparent"].split("-")
    other = signed_headers(BODY, event_id="msg_9", at=AT)["traceparent"].split("-")
    assert [len(part) for part in first] == [2, 32, 16, 2]
    assert first[0] == "00"
    assert first[1] == second[1] != other[1]
    assert first[2] != second[2]


def test_a_given_trace_parent_is_sent() -> None:
    """The caller's trace is continued where there is one."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert signed_headers(BODY, event_id=EVENT, at=AT, traceparent=trace)["traceparent"] == trace


@pytest.mark.parametrize("secret", ["whsec_", "whsec_%%%", "not base64!", ""])
def test_a_malformed_webhook_secret_is_a_settings_error(secret: str) -> None:
    """The error names the variable; the codec's own error would not."""
    with pytest.raises(SettingsError, match="OURVIDZ_WEBHOOK_SECRET"):
        signed_headers(BODY, event_id=EVENT, at=AT, webhook_secrets=[secret])


def test_signed_headers_verify() -> None:
    """Both signatures are valid for the signed body."""
    assert check(BODY, signed()) == Verification(callback="valid", webhook="valid")
    assert check(BODY, signed()).ok


def test_header_names_are_case_insensitive() -> None:
    """Servers pass header names on in any case."""
    upper_case = {name.upper(): value for name, value in signed().items()}
    assert check(BODY, upper_case).ok


def test_either_secret_verifies_while_they_rotate() -> None:
    """Sender and receiver may change their secrets in either order."""
    old = signed(callback=("old",), webhook=WEBHOOK[1:])
    both = verify(BODY, old, callback_secrets=("new", "old"), webhook_secrets=WEBHOOK, now=AT)
    assert both.ok
    signed_by_both = signed(callback=("s1", "s2"), webhook=WEBHOOK)
    assert verify(BODY, signed_by_both, callback_secrets=("s1",), webhook_secrets=WEBHOOK[1:], now=AT).ok


def test_another_secret_does_not_verify() -> None:
    """Only the owner of the secret can sign."""
    foreign = signed(callback=("s2",), webhook=WEBHOOK[1:])
    assert check(BODY, foreign) == Verification(callback="invalid", webhook="invalid")


def test_an_unsigned_request_does_not_verify() -> None:
    """An absent signature counts as no signature, not as a valid one."""
    assert check(BODY, {}) == Verification(callback="absent", webhook="absent")
    assert not check(BODY, {}).ok


def test_without_secrets_no_signature_verifies() -> None:
    """A receiver without secrets must reject everything."""
    assert verify(BODY, signed(), now=AT) == Verification(callback="invalid", webhook="invalid")


@pytest.mark.parametrize("away_s", [-301, 301])
def test_an_old_or_early_webhook_does_not_verify(away_s: int) -> None:
    """A recorded request cannot be replayed later."""
    late = AT + timedelta(seconds=away_s)
    assert check(BODY, signed(), now=late) == Verification(callback="valid", webhook="invalid")
    assert not check(BODY, signed(), now=late).ok
    assert check(BODY, signed(), now=AT + timedelta(seconds=299)).ok


def test_a_body_that_is_not_text_does_not_verify() -> None:
    """Its bytes are rejected without an exception of the decoder."""
    body = b"\xff\xfe"
    sent = signed_headers(b"", event_id=EVENT, at=AT, webhook_secrets=WEBHOOK)
    assert check(body, sent).webhook == "invalid"


@given(position=st.integers(0, len(BODY) - 1), bit=st.integers(0, 7))
def test_one_changed_bit_breaks_both_signatures(position: int, bit: int) -> None:
    """The signatures cover every bit of the body."""
    changed = bytearray(BODY)
    changed[position] ^= 1 << bit
    assert check(bytes(changed), signed()) == Verification(callback="invalid", webhook="invalid")


@given(
    name=st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "X-Callback-Signature"]),
    value=st.text(max_size=60)
    | st.sampled_from(["v1", "v1,", "v1,=", "v2,AAAA", "sha256=", "nan", "1e9", "-1", "٣"]),
)
def test_a_malformed_header_is_invalid_and_raises_nothing(name: str, value: str) -> None:
    """Anybody can send such headers; verification must not fail on them."""
    sent = signed()
    if sent[name] == value:
        return
    assert not check(BODY, sent | {name: value}).ok


def test_an_incomplete_webhook_signature_is_invalid() -> None:
    """Removing one of the three headers must not switch the check off."""
    sent = signed()
    del sent["webhook-timestamp"]
    assert check(BODY, sent).webhook == "invalid"
