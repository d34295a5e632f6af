"""The autoscaling policies of an installation, from its settings."""

from __future__ import annotations

from ourvidz.autoscaling.policy import Policy
from ourvidz.jobs.catalog import QUEUES
from ourvidz.settings import Settings

TARGET_WAIT_S = {"sdxl": 60.0, "wan": 300.0, "chat": 15.0}
"""Target wait by family where none is set: about the longest job of the family."""
DEFAULTS = Policy(target_wait_s=60.0)


def policy_for(settings: Settings, queue: str) -> Policy:
    """Return the policy of a queue of the catalog."""
    family = next(family for family, name in QUEUES.items() if name == queue)
    minimum = settings.autoscale_min.get(family, DEFAULTS.minimum)
    return Policy(
        target_wait_s=settings.autoscale_target_wait_s.get(family, TARGET_WAIT_S[family]),
        minimum=minimum,
        maximum=max(settings.autoscale_max.get(family, DEFAULTS.maximum), minimum),
        idle_s=settings.autoscale_idle_s,
        jobs_at_a_time=settings.chat_batch if family == "chat" else 1,
    )
