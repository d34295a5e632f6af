"""The keys that sign checkpoints: Ed25519, or an HMAC with a secret that the installation has."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Protocol

from ourvidz.errors import SettingsError

NAME = "ourvidz"
"""The name of the key in the line of a signature."""
KEY_ID_BYTES = 4
_ED25519 = b"\x01"
_HMAC = b"\xffourvidz-hmac-sha256"
"""Types of signatures in the hash of a key: 0xff is for those that the specification does not have."""


class SigningKey(Protocol):
    """Signs and verifies the text of checkpoints."""

    @property
    def kind(self) -> str:
        """`ed25519` or `hmac-sha256`."""

    @property
    def key_id(self) -> bytes:
        """Four bytes by which a signature names its key; they say nothing about a secret."""

    def sign(self, text: bytes) -> bytes:
        """The signature of a text."""

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Whether a signature is that of this key."""


class HMACKey:
    """A key derived from a secret that has other uses: neither can stand in for the other."""

    kind = "hmac-sha256"

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"ourvidz audit checkpoint v1", hashlib.sha256)
        self.key_id = _key_id(_HMAC, hashlib.sha256(self._key).digest())

    def sign(self, text: bytes) -> bytes:
        """The HMAC-SHA256 of a text."""
        return hmac.digest(self._key, text, hashlib.sha256)

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Whether a signature is the HMAC of a text, in constant time."""
        return hmac.compare_digest(self.sign(text), signature)


class Ed25519Key:
    """An Ed25519 private key in PEM. Raises `ImportError` without the package `cryptography`, `ValueError`
    for another kind of key."""

    kind = "ed25519"

    def __init__(self, pem: bytes) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("not an Ed25519 key")
        self._private, self._invalid = key, InvalidSignature
        self._public = key.public_key()
        self.key_id = _key_id(_ED25519, self._public.public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """The signature of a text."""
        return self._private.sign(text)

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Whether a signature is that of this key."""
        try:
            self._public.verify(signature, text)
        except self._invalid:
            return False
        return True


def read_ed25519(path: Path, field: str) -> Ed25519Key:
    """The private key in a PEM file that only its owner can read. Raises `SettingsError(field)`."""
    try:
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{field}: others can read {path}: chmod 600", field=field)
        return Ed25519Key(path.read_bytes())
    except ImportError:
        raise SettingsError(f"{field}: needs cryptography: pip install cryptography", field=field) from None
    except OSError as error:
        raise SettingsError(f"{field}: {path} cannot be read: {error.strerror}", field=field) from None
    except (ValueError, TypeError):
        raise SettingsError(f"{field}: {path} is no unencrypted Ed25519 key in PEM", field=field) from None


def read_or_make_secret(path: Path) -> bytes:
    """The random secret in a file, which is made on first use, for its owner only. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    if not path.exists():
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(32).encode())
            os.fsync(descriptor)
            # Of two processes the first one's secret stays.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.close(descriptor)
            temporary.unlink()
    return path.read_bytes()


def _key_id(kind: bytes, public: bytes) -> bytes:
    return hashlib.sha256(f"{NAME}\n".encode() + kind + public).digest()[:KEY_ID_BYTES]
