"""Verifies the signatures of S3 requests (AWS Signature Version 4), in headers and in URLs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
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
    if any(name == "X-Amz-Signature" for name, _ in pairs):
        signature = _signature_in_query(dict(pairs), now)
        pairs = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
    else:
        signature = _signature_in_header(headers, body, now)
    access_key, *scope = signature.credential.split("/")
    if access_key not in secrets:
        raise Refused("InvalidAccessKeyId")
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(sorted(f"{_quoted(name)}={_quoted(value)}" for name, value in pairs)),
            *(
                f"{name}:{' '.join(headers.get(name, '').split())}"
                for name in signature.signed_names.split(";")
            ),
            "",
            signature.signed_names,
            signature.payload_hash,
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", signature.at, "/".join(scope), digest])
    key = f"AWS4{secrets[access_key]}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature.offered):
        raise Refused("SignatureDoesNotMatch")


@dataclass(frozen=True)
class _Signature:
    """What a request says of its signature; `offered` is the signature itself."""

    offered: str
    credential: str
    signed_names: str
    at: str
    payload_hash: str


def _signature_in_query(fields: Mapping[str, str], now: datetime) -> _Signature:
    """That of a presigned URL. Raises `Refused` for one that has expired."""
    at = fields["X-Amz-Date"]
    if now > _time(at) + timedelta(seconds=int(fields["X-Amz-Expires"])):
        raise Refused("AccessDenied")
    credential, signed_names = fields["X-Amz-Credential"], fields["X-Amz-SignedHeaders"]
    return _Signature(fields["X-Amz-Signature"], credential, signed_names, at, "UNSIGNED-PAYLOAD")


def _signature_in_header(headers: Mapping[str, str], body: bytes, now: datetime) -> _Signature:
    """That of the header `Authorization`. Raises `Refused` for none, a wrong clock, or another body."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        raise Refused("AccessDenied")
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    at, payload_hash = headers["x-amz-date"], headers["x-amz-content-sha256"]
    if payload_hash not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        raise Refused("XAmzContentSHA256Mismatch")
    if abs(now - _time(at)) > CLOCK:
        raise Refused("RequestTimeTooSkewed")
    return _Signature(parts["Signature"], parts["Credential"], parts["SignedHeaders"], at, payload_hash)


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
