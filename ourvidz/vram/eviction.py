"""Which parts leave a device so that others fit: a pure function of what the ledger knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ourvidz.records.devices import Resident

HALF_LIFE_S = 60.0
"""Every so many seconds without use, the next use of a part is taken to be half as likely."""
LEAST_USE = 1e-6
"""Lower bound of that likelihood, so that the cost of bringing back always counts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`parts`: the ids of the parts that are asked to leave. `enough`: whether the request fits once they and
    those that are leaving already have left. `forced`: whether pinned parts are among them."""

    parts: tuple[str, ...] = ()
    enough: bool = True
    forced: bool = False


def evictions(
    residents: Iterable[Resident],
    needed_mib: int,
    budget_mib: int,
    now: float,
    *,
    keep: Collection[str] = (),
    first: Collection[str] = (),
    last: Collection[str] = (),
    likely: Mapping[str, float] | None = None,
    force: bool = False,
) -> Plan:
    """The parts that must leave so that `needed_mib` more fit into the budget.

    Idle parts leave first, the least valuable first: lowest (cost to bring back × likelihood of use) per MiB;
    of those of which one is enough, the cheapest.
    Parts in use follow, the one whose turn began first; they leave when their turn is over. Pinned parts are
    asked only by `force`, or when the request cannot fit beside them. The parts `keep`, which the request
    has already, stay; the parts `first`, which the job that asks needs no more, leave before all others, and
    the parts `last`, which it will need next, after all others that are idle.
    `likely` is the likelihood of use by family where the queues tell it; else it falls with the time since
    the last use.
    """
    likely = likely or {}
    residents = [each for each in residents if each.device_mib]
    leaving_mib = sum(each.mib for each in residents if each.state == "evicting")
    shortage = sum(each.mib for each in residents) + needed_mib - budget_mib - leaving_mib
    if shortage <= 0:
        return Plan()
    kept_mib = sum(each.mib for each in residents if each.id in keep)
    others = [each for each in residents if each.id not in keep and each.state != "evicting"]
    pinned_mib = sum(each.mib for each in others if each.pinned and not each.work)
    may_ask_pinned = force or kept_mib + needed_mib > budget_mib - pinned_mib

    def rank(part: Resident) -> tuple[bool, ...]:
        return part.pinned and not force, part.id not in first, part.busy, part.id in last

    candidates = sorted(
        (each for each in others if not each.work and (may_ask_pinned or not each.pinned)),
        key=lambda each: (*rank(each), *_order(each, now, likely)),
    )
    # The memory that a job works in is not asked for: it goes with the part that the job uses.
    work_mib = {each.owner: each.mib for each in residents if each.work}
    selection = _Selection(candidates, work_mib, shortage)
    selection.take()
    selection.spare(lambda each: _order(each, now, likely))
    selection.exchange_last(rank, lambda each: _cost(each, now, likely))
    return Plan(
        tuple(each.id for each in selection.chosen),
        enough=selection.shortage <= 0,
        forced=any(each.pinned for each in selection.chosen),
    )


class _Selection:
    """The parts that leave, of `candidates` in their order of leaving, and what is still short (MiB)."""

    def __init__(self, candidates: list[Resident], work_mib: Mapping[str, int], shortage: int) -> None:
        self.chosen: list[Resident] = []
        self.shortage = shortage
        self._candidates = candidates
        self._work_mib = work_mib

    def take(self) -> None:
        """Choose from the front until there is enough; with a part in use goes what its job works in."""
        work_mib = dict(self._work_mib)
        for each in self._candidates:
            if self.shortage <= 0:
                return
            self.chosen.append(each)
            self.shortage -= each.mib + (work_mib.pop(each.owner, 0) if each.busy else 0)

    def spare(self, order: Callable[[Resident], tuple[bool, float, str]]) -> None:
        """Give back what was chosen early and is not needed beside a larger one that was chosen later."""
        for each in sorted(self.chosen, key=order, reverse=True):
            is_needed = self.shortage + each.mib > 0 or (each.busy and each.owner in self._work_mib)
            if not is_needed:
                self.chosen.remove(each)
                self.shortage += each.mib

    def exchange_last(
        self, rank: Callable[[Resident], tuple[bool, ...]], cost: Callable[[Resident], float]
    ) -> None:
        """Exchange the last one for one of its rank that is enough too and cheaper to bring back."""
        if not self.chosen or self.shortage > 0 or self.chosen[-1].busy:
            return
        dear = self.chosen.pop()
        enough = [
            each
            for each in self._candidates
            if each not in self.chosen and rank(each) == rank(dear) and each.mib >= self.shortage + dear.mib
        ]
        self.chosen.append(min(enough, key=cost))


def use_likelihood(part: Resident, now: float, likely: Mapping[str, float]) -> float:
    """The likelihood that a part is used soon, from 0 to 1: what the queues say, else by its last use."""
    if part.family in likely:
        return max(LEAST_USE, min(1.0, likely[part.family]))
    idle_s = max(0.0, now - part.used_at)
    return float(max(LEAST_USE, 0.5 ** (idle_s / HALF_LIFE_S)))


def _order(part: Resident, now: float, likely: Mapping[str, float]) -> tuple[bool, float, str]:
    if part.busy:
        return True, part.turn_began, part.id
    return False, _cost(part, now, likely) / max(1, part.mib), part.id


def _cost(part: Resident, now: float, likely: Mapping[str, float]) -> float:
    """The seconds that it takes to bring a part back, times the likelihood that this will be needed."""
    return max(part.cost_s, 0.001) * use_likelihood(part, now, likely)
