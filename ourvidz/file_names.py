"""The names that files in a storage may have: those that OurVidz gives them, and those that it reads."""

from __future__ import annotations

import re

OWN_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:-]{1,255}")
"""A segment of a key that OurVidz writes, moves, lists or deletes. Dots alone could leave the bucket."""
READABLE_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9 !$&'()*+,.:;=?@_-]{1,255}")
"""A segment of a key that OurVidz reads: users upload files under all names that Supabase Storage allows.
None has a `%`, so that no name changes when it is decoded once too often."""
READABLE_CHARS = "A-Z a-z 0-9, spaces and ! $ & ' ( ) * + , - . : ; = ? @ _"
MAX_KEY_CHARS = 900
"""The longest key. Object stores have names of 1024 bytes, and a prefix may precede the key."""


def is_readable_key(key: str) -> bool:
    """Whether this has the form of a key of a file that may be read."""
    return _is_key(key, READABLE_NAME)


def is_own_key(key: str) -> bool:
    """Whether this has the form of a key of a file that may be written."""
    return _is_key(key, OWN_NAME)


def _is_key(key: str, name: re.Pattern[str]) -> bool:
    segments = key.split("/")
    return len(key) <= MAX_KEY_CHARS and len(segments) >= 2 and all(map(name.fullmatch, segments))
