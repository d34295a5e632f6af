"""Settings of callbacks and of reference downloads."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import Hosts, StringList, Topic, WebURL, env


class CallbackSettings(Topic):
    """Supabase and the callbacks."""

    supabase_url: WebURL | None = env("SUPABASE_URL")
    supabase_service_key: str | None = env("SUPABASE_SERVICE_KEY")
    callback_url: WebURL | None = env("OURVIDZ_CALLBACK_URL")
    """Where callbacks go that name no URL; default {SUPABASE_URL}/functions/v1/job-callback."""
    callback_allow: StringList = env("OURVIDZ_CALLBACK_ALLOW", ())
    """Hosts (`host` or `host:port`) a payload may name in `callback_url`."""
    callback_secrets: StringList = env("JOB_CALLBACK_SECRET", ())
    """The first signs, all verify: two at once allow rotation."""
    webhook_secrets: StringList = env("OURVIDZ_WEBHOOK_SECRET", ())
    """Standard Webhooks secrets (`whsec_…`); every one of them signs, so receivers may rotate."""
    callback_assets: Literal["objects", "urls"] = env("OURVIDZ_CALLBACK_ASSETS", "objects")
    progress_callbacks: bool = env("OURVIDZ_PROGRESS_CALLBACKS", False)
    callback_timeout_s: float = env("OURVIDZ_CALLBACK_TIMEOUT_S", 10.0, gt=0)
    callback_window_s: float = env("OURVIDZ_CALLBACK_WINDOW_S", 26 * 3600.0, gt=0)
    """How long a terminal callback is retried."""

    @property
    def default_callback_url(self) -> str | None:
        """Where a callback goes when its job names no URL."""
        if self.callback_url:
            return self.callback_url
        return f"{self.supabase_url.rstrip('/')}/functions/v1/job-callback" if self.supabase_url else None


class ReferenceSettings(Topic):
    """The pictures that jobs refer to."""

    fetch_allowed_hosts: Hosts = env("OURVIDZ_FETCH_ALLOWED_HOSTS", ())
    """Besides public addresses at ports 80 and 443: `host`, `host:port` or a network such as 10.1.0.0/16."""
    fetch_timeout_s: float = env("OURVIDZ_FETCH_TIMEOUT_S", 15.0, gt=0)
    """How long one reference may take to arrive, redirects included."""
    reference_max_bytes: int = env("OURVIDZ_REFERENCE_LIMIT_BYTES", 20 << 20, ge=1024)
    reference_max_px: int = env("OURVIDZ_REFERENCE_LIMIT_PIXELS", 50_000_000, ge=4096)
    """Decoding takes up to 18 bytes a pixel."""
