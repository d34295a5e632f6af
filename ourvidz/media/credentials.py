"""Content Credentials: a signed C2PA manifest in a file, which says that a model made it.

The words of a manifest are the standard's: https://spec.c2pa.org/
"""

from __future__ import annotations

import io
import json
from typing import Any, Literal

from PIL import Image

from ourvidz import __version__
from ourvidz.errors import InternalError
from ourvidz.media.images import png
from ourvidz.media.provenance import VOCABULARY, Source

Algorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]

_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
"""The library's own thumbnail would add megabytes to a file."""


class Signer:
    """Signs files with one certificate; safe in several threads and after a fork.

    `certificate` is a PEM chain, the signer's own certificate first; `key` its private key, PEM, PKCS#8, not
    encrypted. `timestamp_url` is an RFC 3161 authority that every signature is sent to; None sends nothing.
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

    def sign(self, data: bytes, mime: str, source: Source) -> bytes:
        """The file with a manifest inside; pictures and XMP stay as they are.

        `InternalError` when it cannot be signed. An authority that does not answer takes 30 seconds.
        """
        return self._signed(data, mime, source, self._timestamp_url)

    def check(self) -> None:
        """Sign a small picture, without the authority. `InternalError` when that cannot be done."""
        self._signed(png(Image.new("RGB", (1, 1))), "image/png", "trainedAlgorithmicMedia", None)

    def _signed(self, data: bytes, mime: str, source: Source, timestamp_url: str | None) -> bytes:
        c2pa = library()
        signed = io.BytesIO()
        try:
            # The library refuses what a parent process made, and to make it anew takes a millisecond.
            told = c2pa.C2paSignerInfo(self._algorithm, self._certificate, self._key, timestamp_url)
            with (
                c2pa.Context.from_dict(_SETTINGS, signer=c2pa.Signer.from_info(told)) as context,
                c2pa.Builder.from_json(manifest(source), context) as builder,
            ):
                builder.sign(mime, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise InternalError(f"The file could not be signed: {error}") from error
        return signed.getvalue()


def manifest(source: Source) -> str:
    """What a manifest says, as JSON: what created the file, and how. Never prompts or user ids."""
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + source}
    return json.dumps(
        {
            "claim_generator_info": [{"name": "OurVidz Worker", "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }
    )


def library() -> Any:
    """The optional library that signs. `ImportError` or `OSError` where it is not or cannot be loaded."""
    import c2pa

    return c2pa
