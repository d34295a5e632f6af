"""The client of an S3 server: which one, how it is called, and when a request is repeated."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from obstore.store import S3Store as Client

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

RETRIES = 2
"""How often one request is repeated after a 5xx or a broken connection; of a large file one part."""
PAUSE_S, MAX_PAUSE_S = 0.1, 1.0
"""The pause before the first repetition, doubled for each further one, and the longest."""
RETRY_TIMEOUT_S = 10.0
"""No request is repeated later than this."""
CONNECT_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 60.0
"""How long one request with the bytes of a file may take: a part of a large one, a whole read, a copy."""
ANSWER_TIMEOUT_S = 10.0
"""How long any other request may take."""
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where the bucket is, and how its server is called.

    `endpoint`: scheme, host and port of the server; None for AWS. `public_endpoint`: the same server as
    browsers reach it. `path_style`: the bucket is in the path, not in the host name. Without keys they are
    found as AWS's tools find them: environment, then the role of the machine.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str = DEFAULT_REGION
    path_style: bool = True
    checksum: Literal["none", "sha256"] = "none"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)


def connect(options: S3Options, endpoint: str | None, *, timeout_s: float) -> Client:
    """The client of one endpoint; None is that of AWS. Nothing is sent yet. `timeout_s`: of one request."""
    config: S3Config = {
        "region": options.region,
        "virtual_hosted_style_request": not options.path_style,
        # Not every server has the request that deletes many files.
        "disable_bulk_delete": True,
    }
    if endpoint:
        config["endpoint"] = endpoint if options.path_style else _with_bucket(endpoint, options.bucket)
    if options.checksum != "none":
        config["checksum_algorithm"] = options.checksum
    client: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "timeout": timedelta(seconds=timeout_s),
    }
    retry: RetryConfig = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        "backoff": {
            "init_backoff": timedelta(seconds=PAUSE_S),
            "max_backoff": timedelta(seconds=MAX_PAUSE_S),
        },
    }

    def credentials() -> S3Credential:
        assert options.access_key_id is not None
        assert options.secret_access_key is not None
        return {
            "access_key_id": options.access_key_id,
            "secret_access_key": options.secret_access_key,
            "token": None,
            "expires_at": None,
        }

    return Client(
        options.bucket,
        config=config,
        client_options=client,
        retry_config=retry,
        # Given this way, the configured key is not mixed with AWS's variables in the environment.
        credential_provider=credentials if options.secret_access_key else None,
    )


def _with_bucket(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()
