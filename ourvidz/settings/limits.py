"""Settings of the limits that callers are held to."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ourvidz.settings.kinds import Addresses, Rate, RateLimit, Topic, env


def _factors(value: dict[str, float]) -> dict[str, float]:
    wrong = [name for name, factor in value.items() if not 0 < factor < 1e6]
    if wrong:
        raise ValueError(f"the factor of {', '.join(wrong)} must be more than 0 and less than a million")
    return value


class LimitSettings(Topic):
    """How much callers may ask for. Rates are `UNITS/SECONDS`; submissions and synchronous requests are
    measured in estimated seconds of GPU time, other requests are counted."""

    submit_key_rate: RateLimit = env("OURVIDZ_LIMIT_SUBMIT_KEY", Rate(36_000_000, 3600))
    """Estimated seconds of the jobs that one key submits."""
    submit_user_rate: RateLimit = env("OURVIDZ_LIMIT_SUBMIT_USER", Rate(144_000, 14_400))
    """Estimated seconds of the jobs of one user; also of those that an address submits without a key. Ten a
    second, and a burst of several hundred clips at once."""
    sync_key_rate: RateLimit = env("OURVIDZ_LIMIT_SYNC_KEY", Rate(36_000, 60))
    """Estimated seconds of the synchronous requests of one key."""
    sync_user_rate: RateLimit = env("OURVIDZ_LIMIT_SYNC_USER", Rate(3_600, 60))
    """Estimated seconds of the synchronous requests of one user, or of an address without a key."""
    read_rate: RateLimit = env("OURVIDZ_LIMIT_READ", Rate(60_000, 60))
    """Other requests of one key."""
    admin_rate: RateLimit = env("OURVIDZ_LIMIT_ADMIN", Rate(6_000, 60))
    """Requests of one key to the routes of operators."""
    address_rate: RateLimit = env("OURVIDZ_LIMIT_ADDRESS", Rate(6_000, 60))
    """Requests from one address without a key that is valid."""
    rate_classes: Annotated[dict[str, float], AfterValidator(_factors)] = env("OURVIDZ_RATE_CLASSES", {})
    """Factors by which the rates of keys of a rate class are multiplied, as JSON: `{class: factor}`."""
    max_user_queued: int = env("OURVIDZ_MAX_USER_QUEUED", 2_000, ge=0)
    """Jobs of one user that may wait to be started; 0 is no limit."""
    max_queue_depth: int = env("OURVIDZ_MAX_QUEUE_DEPTH", 50_000, ge=0)
    """Jobs that may wait in one queue; 0 is no limit."""
    max_streams: int = env("OURVIDZ_MAX_STREAMS", 1_000, gt=0)
    """Event streams of one key, or of an address without one, that one shim process serves at a time."""
    max_connections: int | None = env("OURVIDZ_MAX_CONNECTIONS", None, gt=0)
    """Connections of one shim process, at most what its limit of open files allows."""
    header_timeout_s: float = env("OURVIDZ_HEADER_TIMEOUT_S", 10.0, gt=0)
    """Time for the header of a request to arrive."""
    body_timeout_s: float = env("OURVIDZ_BODY_TIMEOUT_S", 120.0, gt=0)
    """Time for the body of a request to arrive, and for a response to be read on."""
    idle_timeout_s: int = env("OURVIDZ_IDLE_TIMEOUT_S", 5, gt=0)
    """Time that a connection is kept open for another request."""
    trusted_proxies: Addresses = env("OURVIDZ_TRUSTED_PROXIES", ("127.0.0.1", "::1"))
    """Proxies whose `X-Forwarded-For` names the address of a caller."""
