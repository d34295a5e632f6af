"""The addresses a caller may name: where to call back, and where references lie. Nothing is fetched here."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from ourvidz.errors import ReferenceForbidden
from ourvidz.jobs.catalog import READ_BUCKETS
from ourvidz.jobs.fields import Fields, Found, checked_text, refused
from ourvidz.jobs.ranges import DATA_URI_CHARS, LINK_CHARS

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DATA_IMAGE = re.compile(r"data:image/[a-z0-9.+-]+[;,]", re.IGNORECASE)
_NEVER_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\]")
_PORTS = {"http": 80, "https": 443}

CALLBACK_RULE = "an http or https URL, without user name, whose host is on the allow-list"
REFERENCE_RULE = "an http or https URL, a data:image/ URI, or a storage path {bucket}/{user_id}/{file}"


def callback_url(fields: Fields, hosts: frozenset[str]) -> str | None:
    """The caller's callback URL. `hosts` are `host` (any port) or `host:port`."""
    found = fields.first("callback_url")
    if found is None:
        return None
    url = checked_text(found.path, found.value, limit=LINK_CHARS)
    parts = _split(url)
    if parts is None or "@" in parts.netloc or hosts.isdisjoint(_names(parts)):
        raise refused(found.path, CALLBACK_RULE, url)
    return url


def reference(fields: Fields, *paths: str, owner: str) -> str | None:
    """A reference that `owner` may use: a URL, a data URI, or a storage path under the owner's id."""
    found = fields.first(*paths)
    if found is None:
        return None
    value = checked_text(found.path, found.value, limit=DATA_URI_CHARS)
    if scheme_of(value) is None:
        return _storage_path(found, owner)
    if _DATA_IMAGE.match(value):
        return value
    if len(value) > LINK_CHARS or _split(value) is None:
        raise refused(found.path, REFERENCE_RULE, value)
    return value


def scheme_of(reference: str) -> str | None:
    """The scheme of a reference, lower case; None for a storage path."""
    found = _SCHEME.match(reference)
    return found[1].lower() if found else None


def is_readable_by(owner: str, path: str) -> bool:
    """Whether a storage path lies under `owner`, in a bucket that references are read from."""
    bucket, *rest = path.split("/")
    return bucket in READ_BUCKETS and len(rest) >= 2 and _is_under(owner, path)


def _is_under(owner: str, path: str) -> bool:
    # Object stores behind HTTP decode percent signs once more, so an encoded ".." is one too.
    decoded = unquote(path)
    rest = path.split("/")[1:]
    steps = [*rest, *decoded.split("/")]
    return rest[0] == owner and not any(step in ("", ".", "..") for step in steps) and "\\" not in decoded


def _storage_path(found: Found, owner: str) -> str:
    path: str = found.value
    bucket, *rest = path.split("/")
    if bucket not in READ_BUCKETS:
        raise refused(
            found.path, f"{REFERENCE_RULE}, with one of the buckets {', '.join(READ_BUCKETS)}", path
        )
    if len(rest) < 2:
        raise refused(found.path, REFERENCE_RULE, path)
    if not _is_under(owner, path):
        raise refused(
            found.path, "a storage path under the job's own user_id", path, error=ReferenceForbidden
        )
    return path


def _split(url: str) -> SplitResult | None:
    """The parts of an http or https URL with a host; None for anything else."""
    if _NEVER_IN_A_URL.search(url):
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _names(parts: SplitResult) -> set[str]:
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    return {host, bracketed, f"{bracketed}:{port}"}
