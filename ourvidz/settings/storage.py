"""Settings of asset storage and of C2PA signing."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import LocalPath, Topic, WebURL, env


class StorageSettings(Topic):
    """The storage back end."""

    storage: Literal["local"] = env("OURVIDZ_STORAGE", "local")
    configured_storage_dir: LocalPath | None = env("OURVIDZ_STORAGE_DIR")
    signed_url_s: float = env("OURVIDZ_SIGNED_URL_S", 3600.0, ge=1, le=7 * 24 * 3600)
    """How long a signed URL of a stored file can be used, in seconds."""


class SigningSettings(Topic):
    """Certificate and key that sign the C2PA manifests of assets."""

    c2pa_certificate: LocalPath | None = env("OURVIDZ_C2PA_CERTIFICATE")
    """PEM file of the certificate chain, the signer's certificate first."""
    c2pa_key: LocalPath | None = env("OURVIDZ_C2PA_KEY")
    """PEM file of the private key: PKCS#8, not encrypted."""
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = env(
        "OURVIDZ_C2PA_ALGORITHM", "es256"
    )
    c2pa_timestamp_url: WebURL | None = env("OURVIDZ_C2PA_TIMESTAMP_URL")
    """RFC 3161 timestamp authority, called for each signature."""
