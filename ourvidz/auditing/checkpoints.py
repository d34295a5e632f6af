"""Signed checkpoints: how long a log is, and the root of its tree.

Their form is that of transparency logs, https://c2sp.org/tlog-checkpoint in a https://c2sp.org/signed-note.
Two more lines have the time, and the hashes of the leaves since the checkpoint before: they name the first
entry that was changed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ourvidz.auditing.merkle import HASH_BYTES
from ourvidz.auditing.signing import KEY_ID_BYTES, NAME, SigningKey

FOLDER = "checkpoints/audit"
"""The folder of all checkpoints in the storage. No job can name its bucket, and no route serves it."""
_NOTE = re.compile(
    r"ourvidz/audit/(?P<log>[A-Za-z0-9._-]+)\n(?P<size>0|[1-9][0-9]{0,17})\n(?P<root>[A-Za-z0-9+/=]+)\n"
    r"time (?P<time>[0-9TZ:.+-]+)\nleaves (?P<first>0|[1-9][0-9]{0,17}) (?P<leaves>[A-Za-z0-9+/=]*)\n"
    rf"\n— {NAME} (?P<signature>[A-Za-z0-9+/=]+)\n"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log at a time (ISO 8601): its number of entries, its root, and the hashes of the leaves
    from `first` on."""

    log: str
    size: int
    root: bytes
    time: str
    first: int
    leaves: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """The name of its file. Two histories of one log do not replace each other's files."""
        return f"{self.size:018d}-{self.root.hex()[:16]}"

    def text(self) -> str:
        """What is signed."""
        return (
            f"ourvidz/audit/{self.log}\n{self.size}\n{_encode(self.root)}\n"
            f"time {self.time}\nleaves {self.first} {_encode(b''.join(self.leaves))}\n"
        )

    def sign(self, key: SigningKey) -> bytes:
        """The signed note."""
        text = self.text()
        return f"{text}\n— {NAME} {_encode(key.key_id + key.sign(text.encode()))}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint and its signature, which may be wrong."""

    checkpoint: Checkpoint
    key_id: bytes
    signature: bytes

    def check(self, keys: Iterable[SigningKey]) -> bool | None:
        """Whether the signature is valid; None if none of the keys is the one that it names."""
        text = self.checkpoint.text().encode()
        named = [key for key in keys if key.key_id == self.key_id]
        return any(key.verify(text, self.signature) for key in named) if named else None


def parse_note(data: bytes) -> Note:
    """Read a signed note. Raises `ValueError` for anything else, also for another spelling of one."""
    match = _NOTE.fullmatch(data.decode())
    if match is None:
        raise ValueError("not a checkpoint")
    try:
        root, packed, signature = (
            base64.b64decode(match[part], validate=True) for part in ("root", "leaves", "signature")
        )
    except binascii.Error:
        raise ValueError("not base64") from None
    first, size = int(match["first"]), int(match["size"])
    if len(root) != HASH_BYTES or len(packed) != (size - first) * HASH_BYTES:
        raise ValueError("not as many hashes as entries")
    leaves = tuple(packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES))
    checkpoint = Checkpoint(match["log"], size, root, match["time"], first, leaves)
    note = Note(checkpoint, signature[:KEY_ID_BYTES], signature[KEY_ID_BYTES:])
    if f"{checkpoint.text()}\n— {NAME} {_encode(signature)}\n".encode() != data:
        raise ValueError("another spelling of a checkpoint")
    return note


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
