"""What a caller asked for, as a short text that a later request under the same id is compared with.

The text has one entry for each field of the job: `name=digest` for a field that the caller sent,
`name~digest` for one that a default filled in. A default that is empty has no entry. Two texts describe the
same request if every field that either caller sent has the same value in both: a default that differs between
two releases, or two settings of an installation, makes no difference. A default that a caller spells out is
the same request as well.

`flag.name~digest` is a flag that changes what runs. Releases before it wrote none and ignore it, so flags are
compared only where both texts have them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

_DIGEST_BYTES = 6
_ABSENT = ("~", "")
_FLAG = "flag."


def dump_request(
    fields: Mapping[str, Any], defaulted: Collection[str], flags: Mapping[str, bool] | None = None
) -> str:
    """The text for the JSON values of a job's fields, of which those in `defaulted` were not sent, and for
    the flags that change what runs."""
    entries = [f"{_FLAG}{name}~{_digest(value)}" for name, value in sorted((flags or {}).items())]
    for name, value in sorted(fields.items()):
        sent, digest = name not in defaulted, _digest(value)
        if sent or digest:
            entries.append(f"{name}{'=' if sent else '~'}{digest}")
    return " ".join(entries)


def is_same_request(first: str, second: str) -> bool:
    """Whether two texts of `dump_request` describe the same request."""
    one, other = _load(first), _load(second)
    for name in one.keys() | other.keys():
        (mark, digest), (other_mark, other_digest) = one.get(name, _ABSENT), other.get(name, _ABSENT)
        compared = name in one and name in other if name.startswith(_FLAG) else "=" in (mark, other_mark)
        if compared and digest != other_digest:
            return False
    return True


def _load(text: str) -> dict[str, tuple[str, str]]:
    """Marks and digests by field name."""
    entries: dict[str, tuple[str, str]] = {}
    for entry in text.split():
        mark = "=" if "=" in entry else "~"
        name, _, digest = entry.partition(mark)
        entries[name] = (mark, digest)
    return entries


def _digest(value: Any) -> str:
    """A short hash of a JSON value; "" for an empty one. 25 and 25.0 have the same."""
    if value is None or value is False or value in ("", [], {}):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, sort_keys=True).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()[:_DIGEST_BYTES]).decode()
