"""The limits that one caller is held to, by class of route."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ourvidz.jobs.job import Job
from ourvidz.limits.costs import estimated_s
from ourvidz.records.allowances import Charge, JobLimits, Standing
from ourvidz.settings import Settings
from ourvidz.settings.kinds import Rate

RouteClass = Literal["submit", "sync", "read", "admin", "wrong-key"]
"""`submit` and `sync` start jobs, and are charged with their registration; `wrong-key` are requests that were
refused for their key, `read` all others."""
IPV6_PREFIX = 64
"""One caller usually has all addresses of such a network."""


def network_of(address: str) -> str:
    """An address as limits know it: an IPv4 address, the network of an IPv6 address, or the text itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)


@dataclass(slots=True)
class CallerLimits:
    """The limits of one request, and what was left of them.

    `key`: the id of the caller's key; None without one, then `address` counts. `factor` multiplies the rates
    of the key.
    """

    settings: Settings
    key: str | None
    address: str
    route_class: RouteClass
    factor: float = 1.0
    standings: list[Standing] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """Who has the allowances of this caller."""
        return network_of(self.address) if self.key is None else self.key

    def request_charge(self) -> Charge | None:
        """What the request itself takes; None for one that is charged for its jobs, or without a limit."""
        if self.key is None:
            # Apart: guesses of keys must not close the open routes to others behind the same proxy.
            policy = "wrong-key" if self.route_class == "wrong-key" else "address"
            return _charge(policy, self.subject, self.settings.address_rate, 1)
        if self.route_class in ("read", "admin"):
            rate = self.settings.read_rate if self.route_class == "read" else self.settings.admin_rate
            return _charge(f"{self.route_class}-key", self.key, rate, 1, self.factor)
        return None

    def for_job(self, job: Job) -> JobLimits:
        """What the submission of a job, or a retry of it, is held to."""
        # The user that a caller without a key names may be anybody: it must not use up what is another's.
        counted_as = f"address:{self.subject}" if self.key is None else job.user_id
        return JobLimits(
            self._job_charges(estimated_s(job), job.user_id),
            user_queued=self.settings.max_user_queued or None,
            queue_depth=self.settings.max_queue_depth or None,
            counted_as=counted_as,
        )

    def note(self, standings: Sequence[Standing]) -> None:
        """Note what is left of allowances, for the headers of the response."""
        self.standings = list(standings)

    def _job_charges(self, cost: float, user_id: str | None) -> tuple[Charge, ...]:
        settings = self.settings
        if self.route_class == "sync":
            kind, of_key, of_user = "sync", settings.sync_key_rate, settings.sync_user_rate
        else:
            kind, of_key, of_user = "submit", settings.submit_key_rate, settings.submit_user_rate
        if self.key is None:
            charges = [_charge(f"{kind}-address", self.subject, of_user, cost)]
        else:
            charges = [_charge(f"{kind}-key", self.key, of_key, cost, self.factor)]
        if user_id is not None and self.key is not None:
            charges.append(_charge(f"{kind}-user", user_id, of_user, cost))
        return tuple(charge for charge in charges if charge is not None)


def _charge(policy: str, subject: str, rate: Rate | None, cost: float, factor: float = 1.0) -> Charge | None:
    if rate is None:
        return None
    return Charge(policy, subject, max(1.0, rate.quota * factor), rate.window_s, cost)
