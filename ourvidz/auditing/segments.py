"""The files of a log: segments of JSON lines, each after a header with the tree before its first entry."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ourvidz.auditing.merkle import Frontier

_SEGMENT = re.compile(r"[0-9]{18}\.jsonl")
MAX_FIELD_CHARS = 256
"""Longer texts are cut: callers choose some of them, such as a path."""


def segment_name(first: int) -> str:
    """The name of the segment whose first entry is `first`."""
    return f"{first:018d}.jsonl"


def header(log: str, tree: Frontier) -> bytes:
    """The first line of a segment, without its end."""
    return _json({"log": log, "first": tree.size, "tree": [node.hex() for node in tree.hashes]})


def parse_header(line: bytes) -> Frontier:
    """The tree before a segment's first entry. Raises `ValueError`."""
    document = json.loads(line)
    try:
        return Frontier(document["first"], [bytes.fromhex(node) for node in document["tree"]])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not the header of a segment") from None


def entry_line(number: int, fields: Mapping[str, Any]) -> bytes:
    """An entry as ASCII without control characters; fields that are None are left out."""
    cut = {name: _cut(value) for name, value in fields.items() if value is not None}
    return _json({"n": number, **cut})


def is_entry(line: bytes, number: int) -> bool:
    """Whether a line begins as the entry of this number does."""
    return line.startswith(b'{"n":%d,' % number)


def segments_in(folder: Path) -> list[Path]:
    """The segments of a log, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))


def create_segment(folder: Path, log: str, tree: Frontier) -> Path:
    """Make the segment that follows a tree: a file that is there has its header. Raises `OSError`."""
    path = folder / segment_name(tree.size)
    write_file(path, header(log, tree) + b"\n")
    return path


def write_file(path: Path, data: bytes) -> None:
    """Write a file for its owner only, atomically and durably. Raises `OSError`."""
    temporary = path.with_name(f"~{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new and removed names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_FIELD_CHARS]
    if isinstance(value, Mapping):
        return {name: _cut(inner) for name, inner in value.items()}
    return value


def _json(document: Mapping[str, Any]) -> bytes:
    """One line of ASCII without control characters."""
    return json.dumps(document, separators=(",", ":")).encode()
