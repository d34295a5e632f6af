"""The secrets of stored keys: how they are made, written and compared."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string

PREFIX = "ovz"
ID_CHARS = 10
SECRET_CHARS = 43
"""More than 256 bits of letters and digits, which a double click selects as one word."""

_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_KEY = re.compile(rf"{PREFIX}_([a-z0-9]{{{ID_CHARS}}})_[A-Za-z0-9]{{{SECRET_CHARS}}}")


def new_key_id() -> str:
    """A random id of a key."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_CHARS))


def new_key(key_id: str) -> str:
    """A new key of this id: `ovz_<id>_<secret>`."""
    return f"{PREFIX}_{key_id}_{''.join(secrets.choice(_LETTERS_AND_DIGITS) for _ in range(SECRET_CHARS))}"


def key_id_of(text: str) -> str | None:
    """The id in a key; None for what is no key of this form."""
    match = _KEY.fullmatch(text)
    return match[1] if match else None


def hash_key(text: str) -> str:
    """What is stored in place of a key. A plain hash: nobody can try all keys of 256 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_hash_of(text: str, stored: str) -> bool:
    """Whether a stored hash is that of a key, in constant time. Never for an empty one."""
    return bool(stored) and hmac.compare_digest(hash_key(text), stored)
