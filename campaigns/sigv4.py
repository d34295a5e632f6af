"""Verifies the signatures of S3 requests (AWS Signature Version 4), in headers and in URLs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote

CLOCK = timedelta(minutes=15)
"""How far the time of a request may be off."""
_TIME = "%Y%m%dT%H%M%SZ"


class Refused(Exception):
    """A request is not signed as it should be; the argument is the code of S3's answer."""


def verify(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Mapping[str, str],
    now: datetime | None = None,
) -> None:
    """Check one request. `path` and `query` are as sent, header names in lower case, `secrets` by access key.

    Raises `Refused`.
    """
    now = now or datetime.now(UTC)
    pairs = parse_qsl(query, keep_blank_values=True)
    fields = dict(pairs)
    if "X-Amz-Signature" in fields:
        payload_hash = "UNSIGNED-PAYLOAD"
        offered = fields["X-Amz-Signature"]
        pairs = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
        credential, signed_names = fields["X-Amz-Credential"], fields["X-Amz-SignedHeaders"]
        at = fields["X-Amz-Date"]
        if now > _time(at) + timedelta(seconds=int(fields["X-Amz-Expires"])):
            raise Refused("AccessDenied")
    else:
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            raise Refused("AccessDenied")
        parts = dict(part.strip().split("=", 1) for part in rest.split(","))
        offered, credential, signed_names = parts["Signature"], parts["Credential"], parts["SignedHeaders"]
        at = headers["x-amz-date"]
        payload_hash = headers["x-amz-content-sha256"]
        if payload_hash != "UNSIGNED-PAYLOAD" and payload_hash != hashlib.sha256(body).hexdigest():
            raise Refused("XAmzContentSHA256Mismatch")
    if abs(now - _time(at)) > CLOCK and "X-Amz-Signature" not in fields:
        raise Refused("RequestTimeTooSkewed")
    access_key, *scope = credential.split("/")
    if access_key not in secrets:
        raise Refused("InvalidAccessKeyId")
    names = signed_names.split(";")
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(sorted(f"{_quoted(name)}={_quoted(value)}" for name, value in pairs)),
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in names),
            "",
            signed_names,
            payload_hash,
        ]
    )
    text = "\n".join(
        ["AWS4-HMAC-SHA256", at, "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = f"AWS4{secrets[access_key]}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), offered):
        raise Refused("SignatureDoesNotMatch")


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
