"""Settings of the worker process and its Redis connection."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from ourvidz.settings.kinds import LocalPath, RedisURL, Topic, WebURL, env


class ProcessSettings(Topic):
    """Profile, directories, log; what the command line uses; which worker this is."""

    profile: Literal["tiny", "production"] = env("OURVIDZ_PROFILE", "tiny")
    state_dir: LocalPath = env("OURVIDZ_STATE_DIR", Path("~/.local/state/ourvidz"))
    embedded: bool = env("OURVIDZ_EMBEDDED", False)
    """Set by `ourvidz up`: the shim also serves assets and is its own callback receiver."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = env("OURVIDZ_LOG_LEVEL", "INFO")
    log_format: Literal["json", "console"] = env("OURVIDZ_LOG_FORMAT", "console")

    shim_url: str | None = env("OURVIDZ_URL")
    """Where `ourvidz jobs` finds the shim; default is the running `ourvidz up`."""
    shim_key: str | None = env("OURVIDZ_API_KEY")
    """What `ourvidz jobs` authorizes itself with."""
    redis_server_bin: str | None = env("REDIS_SERVER_BIN")
    """The Redis or Valkey server that `ourvidz up` starts; default one on the PATH, else the packaged one."""

    gpu: str | None = env("OURVIDZ_GPU")
    worker: str | None = env("OURVIDZ_WORKER")
    """Which worker this process is (sdxl, io, keeper, …); `ourvidz worker NAME` sets it."""


class RedisSettings(Topic):
    """Broker and ledger."""

    redis_url_given: RedisURL | None = env("OURVIDZ_REDIS_URL")
    upstash_url: WebURL | None = env("UPSTASH_REDIS_REST_URL")
    upstash_token: str | None = env("UPSTASH_REDIS_REST_TOKEN")
    test_redis_url: RedisURL | None = env("OURVIDZ_TEST_REDIS_URL")
    """The server that `ourvidz.testing` uses, under key prefixes of its own; default one that it starts."""
    key_prefix: str = env("OURVIDZ_KEY_PREFIX", "ourvidz:")
    visibility_timeout_s: int = env("OURVIDZ_VISIBILITY_TIMEOUT_S", 7200, ge=60)
    """Longer than any job, the same in every process: a worker restores all queues' messages with its own."""

    @property
    def redis_url(self) -> str:
        """The broker and ledger URL; `OURVIDZ_REDIS_URL` wins over Upstash."""
        if self.redis_url_given:
            return _with_certificates(self.redis_url_given)
        if self.upstash_url and self.upstash_token:
            host = urlsplit(self.upstash_url).hostname
            return _with_certificates(f"rediss://default:{quote(self.upstash_token, safe='')}@{host}:6379")
        return "redis://127.0.0.1:6379/0"


def _with_certificates(url: str) -> str:
    """`rediss://` without `ssl_cert_reqs` would accept any certificate (kombu's default)."""
    if url.startswith("rediss://") and "ssl_cert_reqs" not in url:
        return url + ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    return url
