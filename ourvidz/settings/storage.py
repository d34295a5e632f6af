"""Settings of asset storage and of C2PA signing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ourvidz.settings.kinds import LocalPath, Topic, WebURL, env


class StorageSettings(Topic):
    """The storage back end."""

    storage: Literal["local"] = env("OURVIDZ_STORAGE", "local")
    storage_dir_given: LocalPath | None = env("OURVIDZ_STORAGE_DIR")

    def kept_in(self, state_dir: Path) -> Path:
        """Where the local storage back end keeps its buckets."""
        return self.storage_dir_given or state_dir / "assets"


class SigningSettings(Topic):
    """A C2PA manifest in every file."""

    c2pa_certificate: LocalPath | None = env("OURVIDZ_C2PA_CERTIFICATE")
    """A PEM chain, the signer's own certificate first."""
    c2pa_key: LocalPath | None = env("OURVIDZ_C2PA_KEY")
    """Its private key: PEM, PKCS#8, not encrypted."""
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = env(
        "OURVIDZ_C2PA_ALGORITHM", "es256"
    )
    c2pa_timestamp_url: WebURL | None = env("OURVIDZ_C2PA_TIMESTAMP_URL")
    """An RFC 3161 authority; every signature is sent there."""
