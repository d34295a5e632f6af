"""The only reader of the environment: one typed, frozen settings object.

Every field names its variable. A wrong value is a `SettingsError` of one line that names the variable.
"""

from __future__ import annotations

import os
import re
import socket
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

from ourvidz.errors import SettingsError

Words = Annotated[tuple[str, ...], NoDecode]
"""A list written with commas or spaces."""
SDXLScheduler = Literal[
    "euler",
    "euler_a",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "ddim",
    "unipc",
    "lcm",
]
_LORA = re.compile(r"[A-Za-z0-9._-]+=[^@]+(@-?[0-9]+(\.[0-9]+)?)?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


def _env(name: str, default: Any = None) -> Any:
    return Field(default=default, validation_alias=name)


class Settings(BaseSettings):
    """What an operator can set. Nothing set: tiny profile, local Redis, local storage, loopback only."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    profile: Literal["tiny", "production"] = _env("OURVIDZ_PROFILE", "tiny")
    state_dir: Path = _env("OURVIDZ_STATE_DIR", Path("~/.local/state/ourvidz"))
    embedded: bool = _env("OURVIDZ_EMBEDDED", False)
    """Set by `ourvidz up`: the shim also serves assets and is its own callback receiver."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _env("OURVIDZ_LOG_LEVEL", "INFO")
    log_format: Literal["json", "console"] = _env("OURVIDZ_LOG_FORMAT", "console")

    # The command line
    shim_url: str | None = _env("OURVIDZ_URL")
    """Where `ourvidz jobs` finds the shim; default is the running `ourvidz up`."""
    shim_key: str | None = _env("OURVIDZ_API_KEY")
    """What `ourvidz jobs` authorizes itself with."""
    redis_server_bin: str | None = _env("REDIS_SERVER_BIN")
    """The Redis or Valkey server that `ourvidz up` starts; default one on the PATH, else the packaged one."""

    # Redis: broker and ledger
    redis_url_given: str | None = _env("OURVIDZ_REDIS_URL")
    upstash_url: str | None = _env("UPSTASH_REDIS_REST_URL")
    upstash_token: str | None = _env("UPSTASH_REDIS_REST_TOKEN")
    key_prefix: str = _env("OURVIDZ_KEY_PREFIX", "ourvidz:")
    visibility_timeout_s: int = Field(default=7200, ge=60, validation_alias="OURVIDZ_VISIBILITY_TIMEOUT_S")
    """Longer than any job, the same in every process: a worker restores all queues' messages with its own."""

    # Supabase and callbacks
    supabase_url: str | None = _env("SUPABASE_URL")
    supabase_service_key: str | None = _env("SUPABASE_SERVICE_KEY")
    callback_url: str | None = _env("OURVIDZ_CALLBACK_URL")
    """Where callbacks go that name no URL; default {SUPABASE_URL}/functions/v1/job-callback."""
    callback_allow: Words = _env("OURVIDZ_CALLBACK_ALLOW", ())
    """Hosts (`host` or `host:port`) a payload may name in `callback_url`."""
    callback_secrets: Words = _env("JOB_CALLBACK_SECRET", ())
    """The first signs, all verify: two at once allow rotation."""
    webhook_secrets: Words = _env("OURVIDZ_WEBHOOK_SECRET", ())
    """Standard Webhooks secrets (`whsec_…`); every one of them signs, so receivers may rotate."""
    callback_assets: Literal["objects", "urls"] = _env("OURVIDZ_CALLBACK_ASSETS", "objects")
    progress_callbacks: bool = _env("OURVIDZ_PROGRESS_CALLBACKS", False)
    callback_timeout_s: float = Field(default=10.0, gt=0, validation_alias="OURVIDZ_CALLBACK_TIMEOUT_S")
    callback_window_s: float = Field(default=26 * 3600.0, gt=0, validation_alias="OURVIDZ_CALLBACK_WINDOW_S")
    """How long a terminal callback is retried."""

    # References
    fetch_allowed_hosts: Words = _env("OURVIDZ_FETCH_ALLOWED_HOSTS", ())
    """Besides public addresses at ports 80 and 443: `host`, `host:port` or a network such as 10.1.0.0/16."""
    fetch_timeout_s: float = Field(default=15.0, gt=0, validation_alias="OURVIDZ_FETCH_TIMEOUT_S")
    """How long one reference may take to arrive, redirects included."""
    reference_max_bytes: int = Field(
        default=20 << 20, ge=1024, validation_alias="OURVIDZ_REFERENCE_LIMIT_BYTES"
    )
    reference_max_px: int = Field(
        default=50_000_000, ge=4096, validation_alias="OURVIDZ_REFERENCE_LIMIT_PIXELS"
    )
    """Decoding takes up to 18 bytes a pixel."""

    # The shim
    host: str = _env("OURVIDZ_HOST", "127.0.0.1")
    ports: Annotated[tuple[int, ...], NoDecode] = _env("OURVIDZ_PORTS", (7860,))
    public_url: str | None = _env("OURVIDZ_PUBLIC_URL")
    api_keys: Words = _env("OURVIDZ_API_KEYS", ())
    """`name:key:scope+scope` each; scopes are jobs, chat, admin."""
    wan_worker_api_key: str | None = _env("WAN_WORKER_API_KEY")
    chat_worker_api_key: str | None = _env("CHAT_WORKER_API_KEY")
    sdxl_worker_api_key: str | None = _env("SDXL_WORKER_API_KEY")
    open_routes: Words = _env("OURVIDZ_OPEN_ROUTES", ())
    cors_origins: Words = _env("OURVIDZ_CORS_ORIGINS", ())
    body_limit: int = Field(default=1 << 20, ge=1024, validation_alias="OURVIDZ_BODY_LIMIT_BYTES")
    data_uri_body_limit: int = Field(
        default=8 << 20, ge=1024, validation_alias="OURVIDZ_DATA_URI_LIMIT_BYTES"
    )

    # Life of a job
    lease_s: float = Field(default=10.0, gt=0, validation_alias="OURVIDZ_LEASE_S")
    sweep_s: float = Field(default=2.0, gt=0, validation_alias="OURVIDZ_SWEEP_S")
    empty_queue_s: float = Field(default=15.0, gt=0, validation_alias="OURVIDZ_EMPTY_QUEUE_S")
    retention_s: float = Field(default=7 * 86400.0, gt=0, validation_alias="OURVIDZ_RETENTION_S")
    retry_window_s: float = Field(default=86400.0, gt=0, validation_alias="OURVIDZ_RETRY_WINDOW_S")
    worker_grace_s: float = Field(default=900.0, ge=0, validation_alias="OURVIDZ_WORKER_GRACE_S")
    unclaimed_s: float = Field(default=86400.0, gt=0, validation_alias="OURVIDZ_UNCLAIMED_S")
    presence_s: float = Field(default=15.0, gt=0, validation_alias="OURVIDZ_PRESENCE_S")
    time_limits_s: dict[str, float] = _env("OURVIDZ_TIME_LIMITS_S", {})
    """JSON `{type: seconds}`; the catalog's limit where a type is not named."""
    model_load_s: float = Field(default=600.0, ge=0, validation_alias="OURVIDZ_MODEL_LOAD_S")
    """How long a first job may spend loading its model, on top of its time limit."""
    drain_s: float = Field(default=4.0, gt=0, validation_alias="OURVIDZ_DRAIN_S")
    """How long `ourvidz up` lets running jobs finish before it hands them back."""
    previews: bool = _env("OURVIDZ_PREVIEWS", True)
    """Whether a job's event stream carries small pictures of the unfinished work."""

    # Storage
    storage: Literal["local"] = _env("OURVIDZ_STORAGE", "local")
    storage_dir_given: Path | None = _env("OURVIDZ_STORAGE_DIR")

    # Signing what is made: a C2PA manifest in every file
    c2pa_certificate: Path | None = _env("OURVIDZ_C2PA_CERTIFICATE")
    """A PEM chain, the signer's own certificate first."""
    c2pa_key: Path | None = _env("OURVIDZ_C2PA_KEY")
    """Its private key: PEM, PKCS#8, not encrypted."""
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = _env(
        "OURVIDZ_C2PA_ALGORITHM", "es256"
    )
    c2pa_timestamp_url: str | None = _env("OURVIDZ_C2PA_TIMESTAMP_URL")
    """An RFC 3161 authority; every signature is sent there."""

    # Models
    models: str = _env("OURVIDZ_MODELS", "ourvidz.wiring.models:build")
    """`module:callable` that builds the pipelines of a worker; only the worker's child imports it."""
    sdxl_model: Path | None = _env("OURVIDZ_SDXL_MODEL")
    wan_model: Path | None = _env("OURVIDZ_WAN_MODEL")
    qwen_model: Path | None = _env("OURVIDZ_QWEN_MODEL")
    hf_token: str | None = _env("HF_TOKEN")
    gpu: str | None = _env("OURVIDZ_GPU")
    worker: str | None = _env("OURVIDZ_WORKER")
    """Which worker this process is (sdxl, io, keeper, …); `ourvidz worker NAME` sets it."""
    negative_prompt: str | None = _env("OURVIDZ_NEGATIVE_PROMPT")
    """Used by SDXL jobs that send none."""

    # How SDXL runs; nothing set leaves it to the checkpoint and the device
    sdxl_scheduler: SDXLScheduler | None = _env("OURVIDZ_SDXL_SCHEDULER")
    sdxl_few_steps: Literal["lightning", "turbo", "lcm"] | None = _env("OURVIDZ_SDXL_FEW_STEPS")
    """What kind of distilled checkpoint it is: its guidance is built in, and a job's is not used."""
    sdxl_dtype: Literal["float16", "bfloat16", "float32"] | None = _env("OURVIDZ_SDXL_DTYPE")
    sdxl_attention: Literal["flash", "efficient", "cudnn", "math"] | None = _env("OURVIDZ_SDXL_ATTENTION")
    sdxl_compile: bool = _env("OURVIDZ_SDXL_COMPILE", False)
    sdxl_channels_last: bool = _env("OURVIDZ_SDXL_CHANNELS_LAST", False)
    sdxl_loras: Words = _env("OURVIDZ_SDXL_LORAS", ())
    """`name=path` or `name=path@weight` each; all are merged into the weights."""
    ip_adapter: Path | None = _env("OURVIDZ_IP_ADAPTER")
    ip_adapter_encoder: Path | None = _env("OURVIDZ_IP_ADAPTER_ENCODER")

    @field_validator(
        "callback_allow",
        "fetch_allowed_hosts",
        "callback_secrets",
        "webhook_secrets",
        "api_keys",
        "open_routes",
        "cors_origins",
        "ports",
        "sdxl_loras",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator(
        "state_dir",
        "storage_dir_given",
        "c2pa_certificate",
        "c2pa_key",
        "sdxl_model",
        "wan_model",
        "qwen_model",
        "ip_adapter",
        "ip_adapter_encoder",
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value else value

    @field_validator("ports")
    @classmethod
    def _ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(0 <= port <= 65535 for port in value):
            raise ValueError("must be ports from 0 to 65535")
        return value

    @field_validator("sdxl_loras")
    @classmethod
    def _loras(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [entry for entry in value if not _LORA.fullmatch(entry)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} must be NAME=PATH or NAME=PATH@WEIGHT")
        return value

    @field_validator("fetch_allowed_hosts")
    @classmethod
    def _fetch_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if "/" in entry:
                ip_network(entry)
            elif not _HOST.fullmatch(entry):
                raise ValueError(f"{entry!r} must be host, host:port, [IPv6], [IPv6]:port, or ADDRESS/BITS")
        return value

    @field_validator("redis_url_given")
    @classmethod
    def _redis_url(cls, value: str | None) -> str | None:
        return _with_scheme(value, "redis", "rediss", "unix", "redis+socket")

    @field_validator("supabase_url", "callback_url", "public_url", "upstash_url", "c2pa_timestamp_url")
    @classmethod
    def _web_url(cls, value: str | None) -> str | None:
        if value is not None and not urlsplit(_with_scheme(value, "http", "https") or "").hostname:
            raise ValueError("must be a URL with a host")
        return value

    @field_validator("time_limits_s")
    @classmethod
    def _limits(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = [name for name, limit_s in value.items() if not limit_s > 0]
        if wrong:
            raise ValueError(f"the limit of {', '.join(wrong)} must be more than 0 seconds")
        return value

    @model_validator(mode="after")
    def _production_needs(self) -> Settings:
        if self.profile == "production":
            needed = {"OURVIDZ_SDXL_MODEL": self.sdxl_model}
            missing = [name for name, value in needed.items() if value is None]
            if self.redis_url_given is None and self.upstash_url is None:
                missing.append("OURVIDZ_REDIS_URL")
            if self.default_callback_url is None:
                missing.append("SUPABASE_URL")
            if missing:
                raise ValueError(f"the production profile needs {', '.join(missing)}")
        if (self.upstash_url is None) != (self.upstash_token is None):
            raise ValueError("UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN go together")
        if (self.ip_adapter is None) != (self.ip_adapter_encoder is None):
            raise ValueError("OURVIDZ_IP_ADAPTER and OURVIDZ_IP_ADAPTER_ENCODER go together")
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("OURVIDZ_C2PA_CERTIFICATE and OURVIDZ_C2PA_KEY go together")
        return self

    @property
    def redis_url(self) -> str:
        """The broker and ledger URL; `OURVIDZ_REDIS_URL` wins over Upstash."""
        if self.redis_url_given:
            return _with_certificates(self.redis_url_given)
        if self.upstash_url and self.upstash_token:
            host = urlsplit(self.upstash_url).hostname
            return _with_certificates(f"rediss://default:{quote(self.upstash_token, safe='')}@{host}:6379")
        return "redis://127.0.0.1:6379/0"

    @property
    def storage_dir(self) -> Path:
        """Where the local storage back end keeps its buckets."""
        return self.storage_dir_given or self.state_dir / "assets"

    @property
    def default_callback_url(self) -> str | None:
        """Where a callback goes when its job names no URL."""
        if self.callback_url:
            return self.callback_url
        return f"{self.supabase_url.rstrip('/')}/functions/v1/job-callback" if self.supabase_url else None

    def worker_id(self, family: str) -> str:
        """Worker ids read `sdxl@host-gpu0`; a worker without a GPU reads `sdxl@host-cpu`."""
        place = "cpu" if self.gpu is None else f"gpu{self.gpu}" if self.gpu.isdigit() else self.gpu
        return f"{family}@{socket.gethostname()}-{place}"


def _with_scheme(value: str | None, *schemes: str) -> str | None:
    """`value`, if it is a URL with one of these schemes."""
    if value is not None and urlsplit(value).scheme not in schemes:
        raise ValueError(f"must be a URL that starts with {' or '.join(f'{one}://' for one in schemes)}")
    return value


def _with_certificates(url: str) -> str:
    """`rediss://` without `ssl_cert_reqs` would accept any certificate (kombu's default)."""
    if url.startswith("rediss://") and "ssl_cert_reqs" not in url:
        return url + ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    return url


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` by variable name. Raises `SettingsError` with one line."""
    try:
        return Settings(**overrides)
    except ValidationError as refused:
        first = refused.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "settings"
        raise SettingsError(f"{where}: {first['msg'].removeprefix('Value error, ')}", field=where) from None
    except UnreadableSetting as unreadable:
        # pydantic-settings names the field; its variable is what an operator knows.
        field = next((name for name in Settings.model_fields if f'"{name}"' in str(unreadable)), None)
        where = str(Settings.model_fields[field].validation_alias) if field else "settings"
        raise SettingsError(f"{where}: cannot be read as JSON", field=where) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


def become_worker(name: str, gpu: str | None) -> None:
    """Make this process and its children the worker `name`, seeing one GPU. Call it before torch loads."""
    adopt(OURVIDZ_WORKER=name)
    share_processors()
    if gpu is not None:
        adopt(CUDA_VISIBLE_DEVICES=gpu)


def share_processors() -> None:
    """Let torch's waiting threads sleep instead of spin, unless the operator has said how they should wait.
    Call it before torch loads. Spinning made a job on two busy cores eight times slower."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def adopt(**variables: str) -> None:
    """Set variables for this process and its children; the next `settings()` reads them."""
    os.environ.update(variables)
    settings.cache_clear()


def environment(**overrides: str | None) -> dict[str, str]:
    """This process's environment for a child, with changes; None removes a variable."""
    merged: dict[str, str | None] = {**os.environ, **overrides}
    return {name: value for name, value in merged.items() if value is not None}
