"""Content Credentials: a signed C2PA manifest inside a file states that a model made it.

Specification: https://spec.c2pa.org/
"""

from __future__ import annotations

import io
import json
from typing import Any, Literal

from PIL import Image

from ourvidz import __version__
from ourvidz.errors import InternalError
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import VOCABULARY, DigitalSourceType

Algorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]

_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
"""The library's own thumbnail would add megabytes to a file."""


class Signer:
    """Signs files with one certificate. Safe to share between threads, and after a fork.

    `certificate` is a PEM chain that begins with the signer's own certificate; `key` is its private key as
    unencrypted PKCS#8 PEM. `timestamp_url` is an RFC 3161 time stamp authority that each signature is sent
    to; with None no request is made.
    """

    def __init__(
        self,
        certificate: bytes,
        key: bytes,
        *,
        algorithm: Algorithm = "es256",
        timestamp_url: str | None = None,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._algorithm = algorithm
        self._timestamp_url = timestamp_url

    def sign(self, data: bytes, mime: str, source: DigitalSourceType) -> bytes:
        """Return the file with a signed manifest added; its pixels and its XMP packet do not change.

        Raises `InternalError` if it cannot be signed. An authority that does not answer delays it by 30
        seconds.
        """
        return self._signed(data, mime, source, self._timestamp_url)

    def check(self) -> None:
        """Sign a one-pixel image without the time stamp authority, to test certificate and key. Raises
        `InternalError`."""
        self._signed(encode_png(Image.new("RGB", (1, 1))), "image/png", "trainedAlgorithmicMedia", None)

    def _signed(self, data: bytes, mime: str, source: DigitalSourceType, timestamp_url: str | None) -> bytes:
        """Sign a file with the library. Raises `InternalError`."""
        c2pa = load_c2pa()
        output = io.BytesIO()
        try:
            # The library rejects signers that a parent process made; making one takes a millisecond.
            signer_info = c2pa.C2paSignerInfo(self._algorithm, self._certificate, self._key, timestamp_url)
            with (
                c2pa.Context.from_dict(_SETTINGS, signer=c2pa.Signer.from_info(signer_info)) as context,
                c2pa.Builder.from_json(manifest_json(source), context) as builder,
            ):
                builder.sign(mime, io.BytesIO(data), output)
        except c2pa.C2paError as error:
            raise InternalError(f"The file could not be signed: {error}") from error
        return output.getvalue()


def manifest_json(source: DigitalSourceType) -> str:
    """The manifest definition as JSON: the creating program and the digital source type. It
    holds neither prompts nor user ids."""
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + source}
    return json.dumps(
        {
            "claim_generator_info": [{"name": "OurVidz Worker", "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }
    )


def load_c2pa() -> Any:
    """Import the optional signing library. Raises `ImportError` if it is not installed, `OSError` if it
    cannot be loaded."""
    import c2pa

    return c2pa
