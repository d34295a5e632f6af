"""Settings of the registration of workers at the caller's backend."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from ourvidz.settings.kinds import Topic, env

_POD_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def _pod_id(value: str) -> str:
    """Return `value` unchanged. It becomes a part of a host name."""
    if not _POD_ID.fullmatch(value):
        raise ValueError("must be letters, digits and hyphens")
    return value


class RegistrationSettings(Topic):
    """Whether and as what this host's workers are registered."""

    registration: Literal["auto", "on", "off"] = env("OURVIDZ_REGISTRATION", "auto")
    """`auto`: registered where `RUNPOD_POD_ID` and `SUPABASE_URL` are set."""
    registration_s: float = env("OURVIDZ_REGISTRATION_S", 300.0, ge=0)
    """Interval at which a registration is sent again, in seconds; 0 sends it once."""
    runpod_pod_id: Annotated[str, AfterValidator(_pod_id)] | None = env("RUNPOD_POD_ID")
    """Id of the RunPod pod that this process runs in; RunPod sets it."""
