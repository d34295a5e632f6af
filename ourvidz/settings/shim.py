"""Settings of the HTTP shim."""

from __future__ import annotations

from ourvidz.settings.kinds import Ports, Secret, SecretList, StringList, Topic, WebURL, env


class ShimSettings(Topic):
    """Listen address, authentication and request limits of the shim."""

    host: str = env("OURVIDZ_HOST", "127.0.0.1")
    ports: Ports = env("OURVIDZ_PORTS", (7860,))
    public_url: WebURL | None = env("OURVIDZ_PUBLIC_URL")
    api_keys: SecretList = env("OURVIDZ_API_KEYS", ())
    """API keys, each `name:key:scope+scope`; the scopes are jobs, chat, admin and read."""
    require_keys: bool = env("OURVIDZ_REQUIRE_KEYS", False)
    """Whether requests need a key even where none is set: one of `ourvidz keys`."""
    wan_worker_api_key: Secret | None = env("WAN_WORKER_API_KEY")
    chat_worker_api_key: Secret | None = env("CHAT_WORKER_API_KEY")
    sdxl_worker_api_key: Secret | None = env("SDXL_WORKER_API_KEY")
    open_routes: StringList = env("OURVIDZ_OPEN_ROUTES", ())
    """Routes that need no key: paths, each with a method before it or not."""
    public_info: bool = env("OURVIDZ_PUBLIC_INFO", False)
    """Whether callers without a key see the hosts and models of the installation."""
    cors_origins: StringList = env("OURVIDZ_CORS_ORIGINS", ())
    body_limit: int = env("OURVIDZ_BODY_LIMIT_BYTES", 1 << 20, ge=1024)
    data_uri_body_limit: int = env("OURVIDZ_DATA_URI_LIMIT_BYTES", 8 << 20, ge=1024)
