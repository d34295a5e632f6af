"""Settings of the worker process and its Redis connection."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from ourvidz.settings.kinds import (
    KeyPrefix,
    ListNames,
    LocalPath,
    RedisURL,
    Secret,
    StringList,
    Topic,
    WebURL,
    env,
    reveal,
)


class ProcessSettings(Topic):
    """Profile, directories and logging, the shim of the command line, and the identity of the worker."""

    profile: Literal["tiny", "production"] = env("OURVIDZ_PROFILE", "tiny")
    state_dir: LocalPath = env("OURVIDZ_STATE_DIR", Path("~/.local/state/ourvidz"))
    env_file: LocalPath | None = env("OURVIDZ_ENV_FILE")
    """File of settings that is read instead of `.env`; set by `ourvidz --env-file`."""
    embedded: bool = env("OURVIDZ_EMBEDDED", False)
    """Whether the shim also serves assets and receives its own callbacks; set by `ourvidz up`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = env("OURVIDZ_LOG_LEVEL", "INFO")
    log_format: Literal["json", "console"] = env("OURVIDZ_LOG_FORMAT", "console")

    shim_url: str | None = env("OURVIDZ_URL")
    """Shim that `ourvidz jobs` calls; default is that of the running `ourvidz up`."""
    shim_key: Secret | None = env("OURVIDZ_API_KEY")
    """API key of `ourvidz jobs`."""
    redis_server_bin: str | None = env("REDIS_SERVER_BIN")
    """Redis or Valkey binary that `ourvidz up` starts; default is one on the PATH, else the packaged one."""

    flower_login: Secret | None = env("OURVIDZ_FLOWER_LOGIN")
    """Login of Flower, `user:password`; `ourvidz up` generates one."""
    flower_hosts: StringList = env("OURVIDZ_FLOWER_HOSTS", ())
    """Names, beside those of this machine, under which Flower is called."""
    flower_basic_auth: Secret | None = env("FLOWER_BASIC_AUTH")
    """Logins in Flower's own variable."""
    flower_open_api: bool = env("FLOWER_UNAUTHENTICATED_API", False)
    """Whether Flower needs no login."""

    beats_dir: LocalPath | None = env("OURVIDZ_BEATS_DIR")
    """Folder in which this process shows that it is alive; set by `ourvidz up` for each process."""
    fork_server_fd: int | None = env("OURVIDZ_FORK_SERVER_FD", ge=0)
    """Socket over which the fork server of `ourvidz up` is asked for a child; set by `ourvidz up`."""
    gpu: str | None = env("OURVIDZ_GPU")
    allow_cpu: bool = env("OURVIDZ_ALLOW_CPU", False)
    """Whether models run on the CPU where no GPU is visible, in production and with `OURVIDZ_GPU` set."""
    worker: str | None = env("OURVIDZ_WORKER")
    """Name of this worker process (sdxl, io, keeper, …); set by `ourvidz worker NAME`."""


class RedisSettings(Topic):
    """The Redis server of the broker and the ledger."""

    configured_redis_url: RedisURL | None = env("OURVIDZ_REDIS_URL")
    upstash_url: WebURL | None = env("UPSTASH_REDIS_REST_URL")
    upstash_token: Secret | None = env("UPSTASH_REDIS_REST_TOKEN")
    test_redis_url: RedisURL | None = env("OURVIDZ_TEST_REDIS_URL")
    """Server for `ourvidz.testing`, which uses its own key prefixes; by default it starts a server."""
    key_prefix: KeyPrefix = env("OURVIDZ_KEY_PREFIX", "ourvidz:")
    """Prefix of every key of this installation; the broker's keys continue with `broker:`."""
    replica_acks: int = env("OURVIDZ_REPLICA_ACKS", 0, ge=0)
    """Number of replicas that must have a new job before its submission is accepted, and an ending before its
    callback is sent."""
    visibility_timeout_s: int = env("OURVIDZ_VISIBILITY_TIMEOUT_S", 7200, ge=60)
    """Time after which Kombu redelivers an unacknowledged message.

    It must exceed the longest job and be equal in all processes, since each worker applies its own value to
    the messages of all queues.
    """

    import_lists: ListNames = env("OURVIDZ_IMPORT_LISTS", ("sdxl_queue", "wan_queue", "chat_queue"))
    """Lists on the Redis server from which the keeper takes raw jobs; their names have no prefix."""

    @property
    def broker_prefix(self) -> str:
        """What the broker's keys and channels begin with: no key of the ledger does."""
        return f"{self.key_prefix}broker:"

    @property
    def redis_url(self) -> str:
        """The broker and ledger URL; `OURVIDZ_REDIS_URL` takes precedence over Upstash."""
        if self.configured_redis_url:
            return _with_certificates(reveal(self.configured_redis_url))
        if self.upstash_url and self.upstash_token:
            host = urlsplit(self.upstash_url).hostname
            return _with_certificates(
                f"rediss://default:{quote(reveal(self.upstash_token), safe='')}@{host}:6379"
            )
        return "redis://127.0.0.1:6379/0"


def _with_certificates(url: str) -> str:
    """Require a valid certificate of a `rediss://` URL, since Kombu accepts any by default."""
    if url.startswith("rediss://") and "ssl_cert_reqs" not in url:
        return url + ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    return url
