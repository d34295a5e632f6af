"""Settings of callbacks and of reference downloads."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import Hosts, SecretList, ServiceKey, StringList, Topic, WebURL, env


class CallbackSettings(Topic):
    """Receivers, secrets and retries of callbacks."""

    supabase_url: WebURL | None = env("SUPABASE_URL")
    supabase_service_key: ServiceKey | None = env("SUPABASE_SERVICE_KEY")
    callback_url: WebURL | None = env("OURVIDZ_CALLBACK_URL")
    """Receiver of jobs without a `callback_url`; default {SUPABASE_URL}/functions/v1/job-callback."""
    callback_allow: StringList = env("OURVIDZ_CALLBACK_ALLOW", ())
    """Allowed hosts of a payload's `callback_url`, each `host` or `host:port`."""
    callback_secrets: SecretList = env("JOB_CALLBACK_SECRET", ())
    """Secrets of `X-Callback-Signature`. The first one signs; all of them verify, which allows rotation."""
    webhook_secrets: SecretList = env("OURVIDZ_WEBHOOK_SECRET", ())
    """Standard Webhooks secrets (`whsec_…`). Each one adds a signature, so that receivers can rotate them."""
    callback_assets: Literal["objects", "urls"] = env("OURVIDZ_CALLBACK_ASSETS", "objects")
    progress_callbacks: bool = env("OURVIDZ_PROGRESS_CALLBACKS", False)
    callback_timeout_s: float = env("OURVIDZ_CALLBACK_TIMEOUT_S", 10.0, gt=0)
    """Deadline of one delivery, in seconds."""
    callback_window_s: float = env("OURVIDZ_CALLBACK_WINDOW_S", 26 * 3600.0, gt=0)
    """Time after which a terminal callback is no longer retried, in seconds."""

    @property
    def default_callback_url(self) -> str | None:
        """The receiver of jobs without a `callback_url`; None if no receiver is configured."""
        if self.callback_url:
            return self.callback_url
        return f"{self.supabase_url.rstrip('/')}/functions/v1/job-callback" if self.supabase_url else None


class ReferenceSettings(Topic):
    """Limits of reference images and of their downloads."""

    fetch_allowed_hosts: Hosts = env("OURVIDZ_FETCH_ALLOWED_HOSTS", ())
    """Hosts allowed besides public addresses at ports 80 and 443: `host`, `host:port` or a network (CIDR)."""
    fetch_timeout_s: float = env("OURVIDZ_FETCH_TIMEOUT_S", 15.0, gt=0)
    """Deadline of one download in seconds, redirects included."""
    reference_max_bytes: int = env("OURVIDZ_REFERENCE_LIMIT_BYTES", 20 << 20, ge=1024)
    reference_ttl_s: float = env("OURVIDZ_REFERENCE_TTL_S", 86400.0, ge=60)
    """Time after which an uploaded reference is deleted, in seconds."""
    reference_max_px: int = env("OURVIDZ_REFERENCE_LIMIT_PIXELS", 50_000_000, ge=4096)
    """Maximum number of pixels; decoding needs up to 18 bytes for each."""
