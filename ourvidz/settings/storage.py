"""Settings of asset storage and of C2PA signing."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import BucketName, FolderPath, LocalPath, Secret, Topic, WebURL, env


class StorageSettings(Topic):
    """The storage back end."""

    storage: Literal["local", "s3", "supabase"] = env("OURVIDZ_STORAGE", "local")
    configured_storage_dir: LocalPath | None = env("OURVIDZ_STORAGE_DIR")
    signed_url_s: float = env("OURVIDZ_SIGNED_URL_S", 3600.0, ge=1, le=7 * 24 * 3600)
    """How long a signed URL of a stored file can be used, in seconds."""


class S3Settings(Topic):
    """The bucket of S3, or of a server with its API, and how that server is called."""

    s3_bucket: BucketName | None = env("OURVIDZ_S3_BUCKET")
    s3_prefix: FolderPath | None = env("OURVIDZ_S3_PREFIX")
    """Folder in the bucket, for several installations in one."""
    s3_endpoint: WebURL | None = env("OURVIDZ_S3_ENDPOINT")
    """The server, if it is not AWS's."""
    s3_public_endpoint: WebURL | None = env("OURVIDZ_S3_PUBLIC_ENDPOINT")
    """The server as browsers reach it: signed URLs name it."""
    s3_region: str = env("OURVIDZ_S3_REGION", "us-east-1")
    configured_s3_path_style: bool | None = env("OURVIDZ_S3_PATH_STYLE")
    s3_checksum: Literal["none", "sha256"] = env("OURVIDZ_S3_CHECKSUM", "none")
    """Checksum that the server keeps and checks, besides the signature of every upload."""
    s3_access_key_id: str | None = env("OURVIDZ_S3_ACCESS_KEY_ID")
    s3_secret_access_key: Secret | None = env("OURVIDZ_S3_SECRET_ACCESS_KEY")

    @property
    def s3_path_style(self) -> bool:
        """Whether URLs have the bucket in their path: with an endpoint of one's own, unless set."""
        if self.configured_s3_path_style is not None:
            return self.configured_s3_path_style
        return self.s3_endpoint is not None


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
