"""The signer of generated files, built from the certificate that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz.errors import InternalError, SettingsError
from ourvidz.settings import Settings

if TYPE_CHECKING:
    from ourvidz.media.credentials import Signer

CERTIFICATE, KEY = "OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"


def signer(settings: Settings) -> Signer | None:
    """Return the signer that the settings configure, after signing a small test image; None where they
    configure none.

    Raises `SettingsError` with the variable that keeps it from signing.
    """
    if settings.c2pa_certificate is None or settings.c2pa_key is None:
        return None
    # Imported here: it imports Pillow, and few installations sign.
    from ourvidz.media.credentials import Signer

    _require_library()
    certificate = _read_pem(CERTIFICATE, settings.c2pa_certificate, "CERTIFICATE", "a PEM certificate")
    key = _read_pem(KEY, settings.c2pa_key, "PRIVATE KEY", "an unencrypted PEM key in PKCS#8")
    signer = Signer(
        certificate, key, algorithm=settings.c2pa_algorithm, timestamp_url=settings.c2pa_timestamp_url
    )
    try:
        signer.check()
    except InternalError as error:
        raise SettingsError(
            f"{CERTIFICATE} and {KEY} cannot sign: {error.__cause__}", field=CERTIFICATE
        ) from error
    return signer


def _require_library() -> None:
    """Raise `SettingsError` with the install command where c2pa-python is missing."""
    from ourvidz.media.credentials import load_c2pa

    try:
        load_c2pa()
    except (ImportError, OSError) as missing:
        raise SettingsError(
            f"{CERTIFICATE}: signing needs c2pa-python: pip install 'ourvidz[c2pa]' ({missing})",
            field=CERTIFICATE,
        ) from missing


def _read_pem(variable: str, path: Path, label: str, description: str) -> bytes:
    """Read a PEM file that must have a block of that label. Raises `SettingsError` naming the variable."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}", field=variable) from error
    if f"-----BEGIN {label}-----".encode() not in text:
        raise SettingsError(f"{variable}: {path} does not hold {description}", field=variable)
    return text
