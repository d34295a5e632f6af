"""Settings of autoscaling: the numbers that `GET /autoscale/{queue}` follows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ourvidz.settings.kinds import Topic, env

FAMILIES = ("sdxl", "wan", "chat")
"""The families, in the order of the catalog; a test compares."""


def _families(value: dict[str, float]) -> dict[str, float]:
    unknown = [name for name in value if name not in FAMILIES]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: the families are {', '.join(FAMILIES)}")
    return value


class AutoscalingSettings(Topic):
    """Target wait, bounds and idle time of the workers, by family as JSON."""

    autoscale_target_wait_s: Annotated[
        dict[str, Annotated[float, Field(ge=0.001, le=86400)]], AfterValidator(_families)
    ] = env("OURVIDZ_AUTOSCALE_TARGET_WAIT_S", {})
    """Time in seconds in which the remaining work of a family should be done, `{family: seconds}`."""
    autoscale_min: Annotated[dict[str, Annotated[int, Field(ge=0)]], AfterValidator(_families)] = env(
        "OURVIDZ_AUTOSCALE_MIN", {}
    )
    """Fewest workers of a family, `{family: number}`."""
    autoscale_max: Annotated[dict[str, Annotated[int, Field(ge=1)]], AfterValidator(_families)] = env(
        "OURVIDZ_AUTOSCALE_MAX", {}
    )
    """Most workers of a family, `{family: number}`."""
    autoscale_idle_s: float = env("OURVIDZ_AUTOSCALE_IDLE_S", 300.0, ge=0)
    """Time in seconds after the last claim of a queue until its last worker is not wanted any more."""
