"""Validates the URLs and storage paths in payloads: callback URLs and references. Nothing is fetched."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from ourvidz.errors import ReferenceForbidden
from ourvidz.file_names import MAX_KEY_CHARS, READABLE_CHARS, is_readable_key
from ourvidz.jobs.catalog import READ_BUCKETS
from ourvidz.jobs.fields import Fields, FieldValue, check_text, invalid_value
from ourvidz.jobs.ranges import DATA_URI_CHARS, URL_CHARS

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DATA_IMAGE = re.compile(r"data:image/[a-z0-9.+-]+[;,]", re.IGNORECASE)
_FORBIDDEN_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
_PORTS = {"http": 80, "https": 443}

CALLBACK_RULE = "an http or https URL, without user name, whose host is on the allow-list"
REFERENCE_RULE = "an http or https URL, a data:image/ URI, or a storage path {bucket}/{user_id}/{file}"
PATH_RULE = f"a storage path of names of {READABLE_CHARS}, at most {MAX_KEY_CHARS} characters"


def read_callback_url(fields: Fields, hosts: frozenset[str]) -> str | None:
    """The payload's `callback_url`, which must be on one of `hosts` (`host`, any port, or `host:port`); None
    if it has none. Raises `InvalidParameters`."""
    field = fields.first("callback_url")
    if field is None:
        return None
    url = check_text(field.path, field.value, limit=URL_CHARS)
    parts = _split_http_url(url)
    if parts is None or "@" in parts.netloc or hosts.isdisjoint(_host_forms(parts)):
        raise invalid_value(field.path, CALLBACK_RULE, url)
    return url


def read_reference(fields: Fields, *paths: str, owner: str) -> str | None:
    """The reference at the first of `paths` that is present: a URL, a data URI or a storage path.

    A storage path must lie under the user id `owner`, else `ReferenceForbidden` is raised. Raises
    `InvalidParameters` for anything that is none of the three.
    """
    field = fields.first(*paths)
    if field is None:
        return None
    value = check_text(field.path, field.value, limit=DATA_URI_CHARS)
    if scheme_of(value) is None:
        return _check_storage_path(field, owner)
    if _DATA_IMAGE.match(value):
        return value
    if len(value) > URL_CHARS or _split_http_url(value) is None:
        raise invalid_value(field.path, REFERENCE_RULE, value)
    return value


def scheme_of(reference: str) -> str | None:
    """The scheme of a reference in lower case; None for a storage path."""
    match = _SCHEME.match(reference)
    return match[1].lower() if match else None


def is_readable_by(owner: str, path: str) -> bool:
    """Whether a storage path lies under the user id `owner`, in a bucket that references may be read from."""
    bucket, *rest = path.split("/")
    return bucket in READ_BUCKETS and len(rest) >= 2 and _is_under(owner, path)


def _is_under(owner: str, path: str) -> bool:
    """Whether the path below its bucket starts with `owner`, and has no empty or relative segments."""
    # Object stores behind HTTP decode percent-encoding once more, so an encoded ".." counts too.
    decoded = unquote(path)
    rest = path.split("/")[1:]
    segments = [*rest, *decoded.split("/")]
    return (
        rest[0] == owner
        and not any(segment in ("", ".", "..") for segment in segments)
        and "\\" not in decoded
    )


def _check_storage_path(field: FieldValue, owner: str) -> str:
    """Return the path. Raises `InvalidParameters` for its bucket, `ReferenceForbidden` for another owner."""
    path: str = field.value
    bucket, *rest = path.split("/")
    if bucket not in READ_BUCKETS:
        raise invalid_value(
            field.path, f"{REFERENCE_RULE}, with one of the buckets {', '.join(READ_BUCKETS)}", path
        )
    if len(rest) < 2:
        raise invalid_value(field.path, REFERENCE_RULE, path)
    if not _is_under(owner, path):
        raise invalid_value(
            field.path, "a storage path under the job's own user_id", path, error=ReferenceForbidden
        )
    if not is_readable_key(path):
        raise invalid_value(field.path, PATH_RULE, path)
    return path


def _split_http_url(url: str) -> SplitResult | None:
    """Split an http or https URL that has a host; None for anything else."""
    if _FORBIDDEN_IN_URLS.search(url):
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _host_forms(parts: SplitResult) -> set[str]:
    """The forms in which an allow-list may name the host: without and with its port."""
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    return {host, bracketed, f"{bracketed}:{port}"}
