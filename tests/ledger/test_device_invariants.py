"""Device memory under random verbs: never more than the budget, and who waits gets a turn."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Part
from ourvidz.testing import key_prefix, redis_url
from ourvidz.vram.eviction import evictions
from tests.ledger.conftest import Clock

BUDGET_MIB, TURN_S, LEASE_S = 47, 60.0, 10.0
DEVICE = "card"
PARTS = {
    "sdxl": [Part(id="sdxl", mib=10, pinned=True)],
    "sdxl@gpu1": [Part(id="sdxl@gpu1", mib=10, pinned=True)],
    "wan": [Part(id="wan.encoder", mib=11, cost_s=2.0), Part(id="wan.denoiser", mib=19, cost_s=4.0)],
    "chat": [Part(id="chat", mib=15, cost_s=3.0)],
}
OWNERS = st.sampled_from(sorted(PARTS))


class DeviceMachine(RuleBasedStateMachine):
    """Four owners, two of one family, that ask, load, finish jobs, leave and die, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.prefix = key_prefix()
        self.ledger = Ledger(redis_url(), prefix=self.prefix.__enter__(), clock=self.clock)
        self.lives = dict.fromkeys(PARTS, 0)
        self.stages: dict[str, int] = {}
        self.waited_since: dict[str, float] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self.prefix.__exit__(None, None, None)

    @initialize()
    def begin(self) -> None:
        """The first step of every example."""

    def owner(self, family: str) -> str:
        """The name of the process of a family; another one after it died."""
        return f"{family} {self.lives[family]}"

    def reserve(self, family: str, work_mib: int = 0, *, stage: int | None = None) -> str:
        """Ask for the memory of a job, or of one of its stages, and ask others to leave as the plan says."""
        parts = [*PARTS[family]] if stage is None else [PARTS[family][stage % len(PARTS[family])]]
        if work_mib:
            parts.append(Part(id=f"{family}.work", mib=work_mib, work=True))
        memory = self.ledger.device_memory(DEVICE)
        missing = memory.missing_mib(parts, self.owner(family))
        names = [part.id for part in parts]
        plan = evictions(memory.residents, missing, BUDGET_MIB, memory.now, keep=names)
        answer, _ = self.ledger.reserve_memory(
            DEVICE,
            self.owner(family),
            parts,
            family=family,
            budget_mib=BUDGET_MIB,
            lease_s=LEASE_S,
            turn_s=TURN_S,
            asks=plan.parts,
            waited_since=self.waited_since.get(family) if stage else None,
        )
        return answer

    @rule(family=OWNERS, work_mib=st.sampled_from([0, 1, 5]))
    def ask(self, family: str, work_mib: int) -> None:
        """A job wants its parts."""
        self.reserve(family, work_mib)

    @rule(family=OWNERS, work_mib=st.sampled_from([1, 5]))
    def next_stage(self, family: str, work_mib: int) -> None:
        """A stage has ended, and the job wants the part of the next one."""
        self.ledger.settle_memory(DEVICE, self.owner(family))
        stage = self.stages[family] = self.stages.get(family, -1) + 1
        if stage == 0:
            self.waited_since[family] = self.ledger.device_memory(DEVICE).now
        self.reserve(family, work_mib, stage=stage)

    @rule(family=OWNERS)
    def loaded(self, family: str) -> None:
        """What was granted is on the device."""
        for each in self.rows(family, "loading"):
            assert self.ledger.move_resident(DEVICE, each.owner, each.id, "resident", mib=each.mib, busy=True)

    @rule(family=OWNERS)
    def finish(self, family: str) -> None:
        """A job has ended."""
        self.ledger.settle_memory(DEVICE, self.owner(family))
        self.stages.pop(family, None)

    @rule(family=OWNERS, host_budget_mib=st.sampled_from([0, 20, 64]))
    def leave(self, family: str, host_budget_mib: int) -> None:
        """An owner begins to evict an idle part that somebody asks for."""
        memory = self.ledger.device_memory(DEVICE)
        for each in self.rows(family, "resident"):
            if memory.is_asked(each.id) and not each.busy:
                self.ledger.move_resident(
                    DEVICE, each.owner, each.id, "evicting", mib=each.mib, host_budget_mib=host_budget_mib
                )

    @rule(family=OWNERS, state=st.sampled_from(["asleep", "absent"]))
    def left(self, family: str, state: Any) -> None:
        """The memory of evicted parts is measured to be free."""
        for each in self.rows(family, "evicting"):
            assert self.ledger.move_resident(DEVICE, each.owner, each.id, state, mib=each.mib)

    @rule(family=OWNERS)
    def die(self, family: str) -> None:
        """A process is killed, and another one sees that it is gone."""
        self.ledger.release_memory(DEVICE, self.owner(family))
        self.lives[family] += 1
        self.stages.pop(family, None)

    @rule(family=OWNERS, state=st.sampled_from(["resident", "asleep", "absent", "evicting"]))
    def late_word_of_a_dead_process(self, family: str, state: Any) -> None:
        """What a process says that was given up for dead changes nothing."""
        part = PARTS[family][0]
        dead = f"{family} {self.lives[family] - 1}"
        assert not self.ledger.move_resident(DEVICE, dead, part.id, state, mib=part.mib)

    @rule(seconds=st.sampled_from([0.1, 3, 11, 70]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule(family=OWNERS, work_mib=st.sampled_from([0, 8]))
    def who_waits_gets_a_turn(self, family: str, work_mib: int) -> None:
        """Once every owner behaves (ends its job, and leaves when it is asked), a request is granted within
        the turns of the others."""
        for _ in range(12):
            answer = self.reserve(family, work_mib)
            memory = self.ledger.device_memory(DEVICE)
            if answer == "granted":
                return
            for each in memory.residents:
                if each.work:
                    self.ledger.settle_memory(DEVICE, each.owner)
                elif each.state == "loading":
                    self.ledger.move_resident(DEVICE, each.owner, each.id, "resident", mib=each.mib)
                elif each.state == "evicting" or (
                    answer == "leave" if each.owner == self.owner(family) else memory.is_asked(each.id)
                ):
                    self.ledger.move_resident(DEVICE, each.owner, each.id, "absent")
            for wait in memory.waits:
                if wait.owner != self.owner(family):
                    self.ledger.settle_memory(DEVICE, wait.owner)
            self.clock.advance(9)
        raise AssertionError(self.ledger.device_memory(DEVICE))

    def rows(self, family: str, state: str) -> list[Any]:
        """The parts of a family in a state."""
        memory = self.ledger.device_memory(DEVICE)
        return [
            each
            for each in memory.residents
            if each.owner == self.owner(family) and each.state == state and not each.work
        ]

    @invariant()
    def the_budget_holds(self) -> None:
        """What is granted never exceeds the budget, and every part is its living owner's."""
        memory = self.ledger.device_memory(DEVICE)
        assert memory.held_mib <= BUDGET_MIB
        living = {self.owner(family) for family in PARTS}
        assert {each.owner for each in memory.residents} <= living
        assert {each.owner for each in memory.waits} <= living
        families = {wait.owner: wait.family for wait in memory.waits}
        assert all(owner.startswith(family) for owner, family in families.items())


def test_the_budget_holds_and_who_waits_gets_a_turn() -> None:
    """Random sequences of what owners do, and of deaths."""
    run_state_machine_as_test(
        DeviceMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
