"""Who signs what is made here: the certificate that the settings name."""

from __future__ import annotations

from pathlib import Path

from ourvidz.errors import InternalError, SettingsError
from ourvidz.media.credentials import Signer, load_c2pa
from ourvidz.settings import Settings

CERTIFICATE, KEY = "OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"


def signer(chosen: Settings) -> Signer | None:
    """The signer that these settings name, tried on a small picture; None where they name none.

    `SettingsError` names the variable that keeps it from signing.
    """
    if chosen.c2pa_certificate is None or chosen.c2pa_key is None:
        return None
    _require_library()
    certificate = _pem(CERTIFICATE, chosen.c2pa_certificate, "CERTIFICATE", "a PEM certificate")
    key = _pem(KEY, chosen.c2pa_key, "PRIVATE KEY", "an unencrypted PEM key in PKCS#8")
    made = Signer(certificate, key, algorithm=chosen.c2pa_algorithm, timestamp_url=chosen.c2pa_timestamp_url)
    try:
        made.check()
    except InternalError as error:
        raise SettingsError(
            f"{CERTIFICATE} and {KEY} cannot sign: {error.__cause__}", field=CERTIFICATE
        ) from error
    return made


def _require_library() -> None:
    try:
        load_c2pa()
    except (ImportError, OSError) as missing:
        raise SettingsError(
            f"{CERTIFICATE}: signing needs c2pa-python: pip install 'ourvidz[c2pa]' ({missing})",
            field=CERTIFICATE,
        ) from missing


def _pem(variable: str, path: Path, label: str, wanted: str) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}", field=variable) from error
    if f"-----BEGIN {label}-----".encode() not in text:
        raise SettingsError(f"{variable}: {path} does not hold {wanted}", field=variable)
    return text
