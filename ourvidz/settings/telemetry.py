"""Settings of the metrics that workers send, and of their status line."""

from __future__ import annotations

from ourvidz.settings.kinds import ServiceKey, Topic, WebURL, env


class TelemetrySettings(Topic):
    """Receiver of worker metrics and completion stats; period of the status line."""

    metrics_url: WebURL | None = env("OURVIDZ_METRICS_URL")
    """Receiver of worker metrics and completion stats."""
    metrics_key: ServiceKey | None = env("OURVIDZ_METRICS_KEY")
    """Its key: a bearer token, or a Supabase secret key."""
    status_s: float = env("OURVIDZ_STATUS_S", 60.0, ge=0)
    """Seconds between two status lines of a GPU worker; 0 writes none."""
