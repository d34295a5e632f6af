"""The header fields `RateLimit` and `RateLimit-Policy`.

Source of the form: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ourvidz.records.allowances import Standing


def rate_limit_fields(standings: Sequence[Standing]) -> dict[str, str]:
    """The two fields for what is left of allowances, empty for none: of each policy the quota `q` and its
    window `w` in seconds; and what remains, `r`, with the seconds `t` until all of it is there again."""
    if not standings:
        return {}
    policies = [
        f'"{each.charge.policy}";q={int(each.charge.quota)};w={math.ceil(each.charge.window_s)}'
        for each in standings
    ]
    remaining = [
        f'"{each.charge.policy}";r={int(max(0, each.remaining))};t={math.ceil(each.reset_s)}'
        for each in standings
    ]
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(remaining)}
