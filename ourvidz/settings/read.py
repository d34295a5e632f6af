"""Reads the environment into one typed, frozen settings object.

Each field declares its environment variable. An invalid value raises a `SettingsError` whose one-line message
names the variable.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

from ourvidz.errors import SettingsError
from ourvidz.settings.audit import AuditSettings
from ourvidz.settings.autoscaling import AutoscalingSettings
from ourvidz.settings.callbacks import CallbackSettings, ReferenceSettings
from ourvidz.settings.chat import ChatSettings
from ourvidz.settings.hub import HubSettings
from ourvidz.settings.jobs import JobSettings
from ourvidz.settings.kinds import env
from ourvidz.settings.limits import LimitSettings
from ourvidz.settings.memory import MemorySettings
from ourvidz.settings.pictures import PictureSettings
from ourvidz.settings.process import ProcessSettings, RedisSettings
from ourvidz.settings.registration import RegistrationSettings
from ourvidz.settings.sdxl import SDXLSettings
from ourvidz.settings.shim import ShimSettings
from ourvidz.settings.storage import S3Settings, SigningSettings, StorageSettings
from ourvidz.settings.telemetry import TelemetrySettings
from ourvidz.settings.wan import WanSettings

_REQUIRED_TOGETHER = (
    ("OURVIDZ_IP_ADAPTER", "OURVIDZ_IP_ADAPTER_ENCODER"),
    ("OURVIDZ_S3_ACCESS_KEY_ID", "OURVIDZ_S3_SECRET_ACCESS_KEY"),
    ("OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"),
    ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"),
)
"""Pairs of variables that must be set together."""


ENV_FILE = "OURVIDZ_ENV_FILE"
NOT_IN_FILES = frozenset({"REDIS_SERVER_BIN", ENV_FILE})
"""Variables of the environment only: a file that lies in a directory must not name what is executed."""
RUNPOD_SYNC_DEADLINE_S = 90.0
"""The default deadline of a synchronous request behind RunPod's proxy."""


class Settings(
    ProcessSettings,
    RedisSettings,
    CallbackSettings,
    ReferenceSettings,
    RegistrationSettings,
    ShimSettings,
    LimitSettings,
    AuditSettings,
    JobSettings,
    AutoscalingSettings,
    MemorySettings,
    StorageSettings,
    S3Settings,
    SigningSettings,
    TelemetrySettings,
    SDXLSettings,
    WanSettings,
    ChatSettings,
    PictureSettings,
    HubSettings,
    BaseSettings,
):
    """All settings. Defaults: tiny profile, local Redis, local storage, loopback interface."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the strongest first. Raises `SettingsError` for a file with a variable that none may
        have."""
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        for name in NOT_IN_FILES:
            if dotenv_settings.env_vars.get(name.lower()) and not os.environ.get(name):
                raise SettingsError(f"{name}: set it in the environment, not in a file", field=name)
        return super().settings_customise_sources(
            settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
        )

    models: str = env("OURVIDZ_MODELS", "ourvidz.wiring.models:build")
    """`module:callable` that builds the pipelines of a worker; only the worker's child imports it."""

    @model_validator(mode="after")
    def _complete(self) -> Settings:
        if self.profile == "production":
            needed = {
                "OURVIDZ_REDIS_URL": self.configured_redis_url or self.upstash_url,
                "SUPABASE_URL": self.default_callback_url,
            }
            missing = [name for name, value in needed.items() if value is None]
            if missing:
                raise ValueError(f"the production profile needs {', '.join(missing)}")
        if self.registration == "on":
            if self.supabase_url is None:
                raise ValueError("OURVIDZ_REGISTRATION=on needs SUPABASE_URL")
            if self.public_url is None and self.runpod_pod_id is None:
                raise ValueError("OURVIDZ_REGISTRATION=on needs OURVIDZ_PUBLIC_URL or RUNPOD_POD_ID")
        if self.storage == "s3" and self.s3_bucket is None:
            raise ValueError("OURVIDZ_STORAGE=s3 needs OURVIDZ_S3_BUCKET")
        if self.storage == "supabase" and not (self.supabase_url and self.supabase_service_key):
            raise ValueError("OURVIDZ_STORAGE=supabase needs SUPABASE_URL and SUPABASE_SERVICE_KEY")
        values = {
            field.validation_alias: getattr(self, name) for name, field in type(self).model_fields.items()
        }
        for one, other in _REQUIRED_TOGETHER:
            if (values[one] is None) != (values[other] is None):
                raise ValueError(f"{one} and {other} go together")
        return self

    @property
    def storage_dir(self) -> Path:
        """The directory that contains the buckets of the local storage back end."""
        return self.configured_storage_dir or self.state_dir / "assets"

    @property
    def models_dir(self) -> Path:
        """The folder into which `ourvidz models pull` stores checkpoints that no other setting places."""
        return self.configured_models_dir or self.state_dir / "models"

    @property
    def sync_limit_s(self) -> float:
        """The deadline of a synchronous request in seconds. RunPod's proxy cuts a request off after 100
        seconds, so that behind it the default is shorter."""
        if self.runpod_pod_id is not None and "sync_deadline_s" not in self.model_fields_set:
            return min(self.sync_deadline_s, RUNPOD_SYNC_DEADLINE_S)
        return self.sync_deadline_s

    @property
    def requires_gpu(self) -> bool:
        """Whether a worker of this configuration must not load its models without a GPU."""
        if self.allow_cpu or self.emulated_gpu is not None:
            return False
        return self.profile == "production" or self.gpu is not None

    def worker_id(self, family: str) -> str:
        """The id of this worker, such as `sdxl@host-gpu0`, or `sdxl@host-cpu` without a GPU."""
        place = "cpu" if self.gpu is None else f"gpu{self.gpu}" if self.gpu.isdigit() else self.gpu
        return f"{family}@{socket.gethostname()}-{place}"


def load_settings(**overrides: Any) -> Settings:
    """Read and validate the environment. `overrides` are values by variable name, and pydantic-settings' own
    arguments such as `_env_file`. Raises `SettingsError`, also for a name that is no setting."""
    variables = {field.validation_alias for field in Settings.model_fields.values()}
    for name in overrides:
        if name not in variables and not name.startswith("_"):
            raise SettingsError(f"{name}: there is no setting of this name", field=name)
    if env_file := os.environ.get(ENV_FILE):
        if not Path(env_file).exists():
            raise SettingsError(f"{ENV_FILE}: there is no file {env_file}", field=ENV_FILE)
        overrides = {"_env_file": env_file, **overrides}
    if os.environ.get("OURVIDZ_IMPORT_LISTS") == "":
        # The one variable whose empty value differs from its default.
        overrides = {"OURVIDZ_IMPORT_LISTS": (), **overrides}
    try:
        return Settings(**overrides)
    except ValidationError as refused:
        first = refused.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "settings"
        raise SettingsError(f"{where}: {first['msg'].removeprefix('Value error, ')}", field=where) from None
    except UnreadableSetting as unreadable:
        # pydantic-settings reports the field, but operators know the variable.
        field = next((name for name in Settings.model_fields if f'"{name}"' in str(unreadable)), None)
        where = str(Settings.model_fields[field].validation_alias) if field else "settings"
        raise SettingsError(f"{where}: cannot be read as JSON", field=where) from None


def secret_variables() -> frozenset[str]:
    """The variables whose values are secrets, such as keys and the URL of the Redis server."""
    return frozenset(
        str(field.validation_alias)
        for field in Settings.model_fields.values()
        if SecretStr.__name__ in repr(field.annotation)
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


def become_worker(name: str, gpu: str | None) -> None:
    """Make this process and its children the worker `name` with one visible GPU. Call before torch loads."""
    set_environment(OURVIDZ_WORKER=name)
    share_processors()
    share_device_memory()
    if gpu is not None:
        show_gpu(gpu)


def show_gpu(gpu: str) -> None:
    """Let this process and its children see one GPU, by its UUID or its index. Call before torch loads.

    Indexes are those of nvidia-smi unless CUDA_DEVICE_ORDER is set: CUDA counts the fastest card first.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    set_environment(CUDA_VISIBLE_DEVICES=gpu)


def share_device_memory() -> None:
    """Let torch's blocks of GPU memory grow, unless its allocator is configured. Call before torch loads.

    Images and texts of changing sizes leave gaps between blocks of fixed size, which stay taken.
    """
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def share_processors() -> None:
    """Make idle torch threads sleep instead of spin, unless OMP_WAIT_POLICY is set. Call before torch loads.

    With spinning threads a job on two busy cores took eight times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def set_environment(**variables: str) -> None:
    """Set environment variables of this process and its children, and invalidate the cached `settings()`."""
    os.environ.update(variables)
    settings.cache_clear()


def ignore_env_file() -> bool:
    """Let this process read no `.env` of its working directory, unless a file is named in the environment.
    Return whether there is one that is ignored."""
    if os.environ.get(ENV_FILE):
        return False
    set_environment(**{ENV_FILE: os.devnull})
    return Path(".env").is_file()


def environment(**overrides: str | None) -> dict[str, str]:
    """The environment of this process with `overrides`, for a child process; None removes a variable."""
    merged: dict[str, str | None] = {**os.environ, **overrides}
    return {name: value for name, value in merged.items() if value is not None}
