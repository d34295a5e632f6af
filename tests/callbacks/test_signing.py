"""Receivers can trust a callback, and ours trusts nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.callbacks.signing import Verified, headers, verify
from ourvidz.errors import SettingsError

AT = datetime(2027, 1, 15, 8, 0, 0, 500_000, tzinfo=UTC)
BODY = '{"job_id":"job-1","prompt":"côte"}'.encode()
KEYS = [b"first key of thirty-two bytes ok", b"second key, thirty-two bytes too"]
WEBHOOK = ["whsec_" + base64.b64encode(key).decode() for key in KEYS]
EVENT = "msg_0123"


def signed(
    body: bytes = BODY, callback: tuple[str, ...] = ("s1",), webhook: list[str] = WEBHOOK[:1]
) -> dict[str, str]:
    return headers(
        body, event_id=EVENT, at=AT, service_key="key", callback_secrets=callback, webhook_secrets=webhook
    )


def check(body: bytes, given_: dict[str, str], *, now: datetime = AT) -> Verified:
    return verify(body, given_, callback_secrets=("s1",), webhook_secrets=WEBHOOK[:1], now=now)


def test_the_bearer_is_the_service_key() -> None:
    """The edge function's gateway lets nothing else in."""
    assert signed()["Authorization"] == "Bearer key"


def test_the_callback_signature_is_the_hex_hmac_of_the_body() -> None:
    """Computed here without the project, as the live receiver does."""
    expected = hmac.new(b"s1", BODY, hashlib.sha256).hexdigest()
    assert signed(callback=("s1", "s2"))["X-Callback-Signature"] == f"sha256={expected}"


def test_the_webhook_headers_follow_the_standard() -> None:
    """Computed here without the library; every secret signs, so receivers may rotate."""
    made = signed(webhook=WEBHOOK)
    stamp = "1800000000"
    text = b".".join([EVENT.encode(), stamp.encode(), BODY])
    expected = [
        "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode() for key in KEYS
    ]
    assert made["webhook-id"] == EVENT
    assert made["webhook-timestamp"] == stamp
    assert made["webhook-signature"].split(" ") == expected


def test_a_time_in_another_zone_is_the_same_time() -> None:
    """The library would take the wall clock of any zone for UTC."""
    there = AT.astimezone(timezone(timedelta(hours=5)))
    again = headers(BODY, event_id=EVENT, at=there, webhook_secrets=WEBHOOK)
    assert again["webhook-signature"] == signed(webhook=WEBHOOK)["webhook-signature"]


def test_nothing_configured_sends_nothing_but_the_trace() -> None:
    """No empty bearer and no signature with an empty secret."""
    assert list(headers(BODY, event_id=EVENT, at=AT)) == ["traceparent"]


def test_all_deliveries_of_an_event_share_a_trace() -> None:
    """One event is one trace, each delivery a span in it."""
    first = headers(BODY, event_id=EVENT, at=AT)["traceparent"].split("-")
    second = headers(BODY, event_id=EVENT, at=AT + timedelta(seconds=5))["traceparent"].split("-")
    other = headers(BODY, event_id="msg_9", at=AT)["traceparent"].split("-")
    assert [len(part) for part in first] == [2, 32, 16, 2]
    assert first[0] == "00"
    assert first[1] == second[1] != other[1]
    assert first[2] != second[2]


def test_a_given_trace_is_passed_on() -> None:
    """A caller's trace goes on where there is one."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert headers(BODY, event_id=EVENT, at=AT, traceparent=trace)["traceparent"] == trace


@pytest.mark.parametrize("secret", ["whsec_", "whsec_%%%", "not base64!", ""])
def test_a_webhook_secret_that_is_none_is_a_settings_error(secret: str) -> None:
    """The operator reads which variable is wrong, not a traceback of a codec."""
    with pytest.raises(SettingsError, match="OURVIDZ_WEBHOOK_SECRET"):
        headers(BODY, event_id=EVENT, at=AT, webhook_secrets=[secret])


def test_what_we_sign_verifies() -> None:
    """Both signatures hold on what was sent."""
    assert check(BODY, signed()) == Verified(callback="valid", webhook="valid")
    assert check(BODY, signed()).ok


def test_header_names_have_no_case() -> None:
    """Servers hand headers over in every spelling."""
    shouted = {name.upper(): value for name, value in signed().items()}
    assert check(BODY, shouted).ok


def test_either_secret_verifies_while_they_rotate() -> None:
    """New and old secrets overlap in both directions."""
    old = signed(callback=("old",), webhook=WEBHOOK[1:])
    both = verify(BODY, old, callback_secrets=("new", "old"), webhook_secrets=WEBHOOK, now=AT)
    assert both.ok
    signed_by_both = signed(callback=("s1", "s2"), webhook=WEBHOOK)
    assert verify(BODY, signed_by_both, callback_secrets=("s1",), webhook_secrets=WEBHOOK[1:], now=AT).ok


def test_another_secret_does_not_verify() -> None:
    """A signature is worth its secret."""
    foreign = signed(callback=("s2",), webhook=WEBHOOK[1:])
    assert check(BODY, foreign) == Verified(callback="invalid", webhook="invalid")


def test_unsigned_requests_are_not_trusted() -> None:
    """Absent is not valid."""
    assert check(BODY, {}) == Verified(callback="absent", webhook="absent")
    assert not check(BODY, {}).ok


def test_a_signature_nobody_can_check_is_not_trusted() -> None:
    """A receiver without secrets believes nothing."""
    assert verify(BODY, signed(), now=AT) == Verified(callback="invalid", webhook="invalid")


@pytest.mark.parametrize("away_s", [-301, 301])
def test_an_old_or_early_webhook_does_not_verify(away_s: int) -> None:
    """A recorded request cannot be played back later."""
    late = AT + timedelta(seconds=away_s)
    assert check(BODY, signed(), now=late) == Verified(callback="valid", webhook="invalid")
    assert not check(BODY, signed(), now=late).ok
    assert check(BODY, signed(), now=AT + timedelta(seconds=299)).ok


def test_a_body_that_is_not_text_does_not_verify() -> None:
    """Bytes that we never send are refused, not decoded."""
    body = b"\xff\xfe"
    made = headers(b"", event_id=EVENT, at=AT, webhook_secrets=WEBHOOK)
    assert check(body, made).webhook == "invalid"


@given(position=st.integers(0, len(BODY) - 1), bit=st.integers(0, 7))
def test_one_changed_bit_breaks_both_signatures(position: int, bit: int) -> None:
    """The whole body is signed, to the last bit."""
    changed = bytearray(BODY)
    changed[position] ^= 1 << bit
    assert check(bytes(changed), signed()) == Verified(callback="invalid", webhook="invalid")


@given(
    name=st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "X-Callback-Signature"]),
    value=st.text(max_size=60)
    | st.sampled_from(["v1", "v1,", "v1,=", "v2,AAAA", "sha256=", "nan", "1e9", "-1", "٣"]),
)
def test_a_malformed_header_is_invalid_and_raises_nothing(name: str, value: str) -> None:
    """What a stranger writes into a header is an answer, never an exception."""
    made = signed()
    if made[name] == value:
        return
    assert not check(BODY, made | {name: value}).ok


def test_a_partly_missing_webhook_is_invalid() -> None:
    """Taking a header away does not turn a check off."""
    made = signed()
    del made["webhook-timestamp"]
    assert check(BODY, made).webhook == "invalid"
