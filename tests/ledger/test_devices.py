"""Device memory: grants, the line of those who wait, turns, eviction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Part
from tests.ledger.conftest import Clock

BUDGET = 47
SDXL = Part(id="sdxl", mib=10, pinned=True)
WAN = Part(id="wan", mib=30, cost_s=5.0)
CHAT = Part(id="chat", mib=15, cost_s=3.0)
TURN_S, LEASE_S = 60.0, 10.0

Reserve = Callable[..., str]


@pytest.fixture
def reserve(ledger: Ledger) -> Reserve:
    """Reserves the memory of parts for the owner named like the first part's model; returns the answer."""

    def call(*parts: Part, **options: Any) -> str:
        owner = parts[0].id.split(".", maxsplit=1)[0]
        settings = {"family": owner, "budget_mib": BUDGET, "lease_s": LEASE_S, "turn_s": TURN_S} | options
        return ledger.reserve_memory("card", owner, parts, **settings)[0]

    return call


@pytest.fixture
def move(ledger: Ledger) -> Callable[..., bool]:
    """Changes the state of a part of the owner named like its model."""

    def call(part: Part, state: Any, **options: Any) -> bool:
        owner = part.id.split(".", maxsplit=1)[0]
        return ledger.move_resident("card", owner, part.id, state, mib=part.mib, **options)

    return call


def test_all_parts_are_granted_or_none(ledger: Ledger, reserve: Reserve) -> None:
    """A request that does not fit as a whole gets nothing, and waits."""
    encoder, denoiser = Part(id="wan.encoder", mib=20), Part(id="wan.denoiser", mib=20)
    assert reserve(SDXL) == "granted"
    assert reserve(encoder, denoiser) == "waiting"
    memory = ledger.device_memory("card")
    assert [(each.id, each.state) for each in memory.residents] == [("sdxl", "loading")]
    assert [(each.owner, each.needed_mib) for each in memory.waits] == [("wan", 40)]
    assert ledger.devices() == ["card"]


def test_a_device_of_a_host_that_is_gone_is_forgotten(ledger: Ledger, reserve: Reserve, clock: Clock) -> None:
    """An hour after its last measurement; one that comes back tells what it holds."""
    assert reserve(SDXL) == "granted"
    ledger.renew_memory("card", "sdxl", lease_s=10, measured={"total_mib": 1})
    clock.advance(3590)
    assert ledger.devices() == ["card"]
    clock.advance(21)
    assert ledger.devices() == []
    assert ledger.device_memory("card").residents == ()
    assert reserve(SDXL) == "granted"
    assert ledger.devices() == ["card"]


def test_what_is_resident_is_granted_again_without_more_memory(
    ledger: Ledger, reserve: Reserve, move: Callable[..., bool]
) -> None:
    """The next job of a warm model needs no more memory, and what it needs beside the weights is counted."""
    assert reserve(WAN) == "granted"
    assert move(WAN, "resident")
    assert reserve(WAN, Part(id="wan.work", mib=17, work=True)) == "granted"
    assert ledger.device_memory("card").held_mib == BUDGET
    assert reserve(WAN, Part(id="wan.work", mib=18, work=True)) == "waiting"
    assert move(Part(id="wan.work", mib=0, work=True), "absent")
    assert ledger.device_memory("card").held_mib == 30


def test_only_the_owner_moves_a_part(ledger: Ledger, reserve: Reserve) -> None:
    """Another process cannot change or delete it."""
    assert reserve(WAN) == "granted"
    assert not ledger.move_resident("card", "other", "wan", "absent")
    assert ledger.device_memory("card").residents[0].state == "loading"


def test_eviction_frees_memory_only_when_it_is_confirmed(reserve: Reserve, move: Callable[..., bool]) -> None:
    """A part that is leaving counts until it is asleep or absent."""
    assert reserve(WAN) == "granted"
    assert move(WAN, "evicting", host_budget_mib=64)
    assert reserve(SDXL, CHAT) == "waiting"
    assert move(WAN, "asleep")
    assert reserve(SDXL, CHAT) == "granted"


def test_a_part_that_could_not_be_woken_counts_for_the_host(
    ledger: Ledger, reserve: Reserve, move: Callable[..., bool]
) -> None:
    """The device was full, and the part stayed in the memory of the host."""
    assert reserve(WAN) == "granted"
    assert move(WAN, "evicting", host_budget_mib=40)
    assert move(WAN, "asleep")
    assert reserve(WAN) == "granted"
    assert move(WAN, "asleep")
    assert ledger.device_memory("card").residents[0].host_mib == WAN.mib
    assert reserve(CHAT) == "granted"
    assert not move(CHAT, "evicting", host_budget_mib=40)


def test_parts_sleep_within_the_budget_of_the_host(reserve: Reserve, move: Callable[..., bool]) -> None:
    """The second sleeper that exceeds the host's budget is told to leave altogether."""
    assert reserve(WAN) == "granted"
    assert reserve(CHAT) == "granted"
    assert move(WAN, "evicting", host_budget_mib=40)
    assert not move(CHAT, "evicting", host_budget_mib=40)
    assert move(WAN, "absent")
    assert move(CHAT, "evicting", host_budget_mib=40)


def test_who_waits_longest_is_served_first(reserve: Reserve, move: Callable[..., bool], clock: Clock) -> None:
    """A small request that came later does not take the memory that an earlier large one waits for."""
    assert reserve(CHAT) == "granted"
    assert reserve(SDXL) == "granted"
    assert reserve(WAN) == "waiting"
    clock.advance(1)
    assert reserve(Part(id="late", mib=20)) == "waiting"
    assert move(CHAT, "absent")
    assert reserve(Part(id="late", mib=20)) == "waiting"
    assert reserve(WAN) == "granted"
    assert reserve(Part(id="late", mib=7)) == "granted"


def test_a_turn_is_kept_and_then_ends(reserve: Reserve, move: Callable[..., bool], clock: Clock) -> None:
    """Asked to leave, an owner goes on until its turn is over; then it must leave before its next job."""
    assert reserve(CHAT) == "granted"
    assert move(CHAT, "resident")
    clock.advance(30)
    assert reserve(Part(id="big", mib=40), asks=["chat"]) == "waiting"
    assert reserve(CHAT, Part(id="chat.work", mib=1, work=True)) == "granted"
    clock.advance(TURN_S - 30 - LEASE_S + 5)
    assert reserve(Part(id="big", mib=40), asks=["chat"]) == "waiting"
    clock.advance(LEASE_S - 4)
    assert reserve(CHAT) == "leave"


def test_force_ends_a_turn(reserve: Reserve, move: Callable[..., bool]) -> None:
    """Forced, even a part in its turn must leave before the next job."""
    assert reserve(SDXL) == "granted"
    assert move(SDXL, "resident")
    assert reserve(Part(id="big", mib=40), asks=["sdxl"], force=True) == "waiting"
    assert reserve(SDXL) == "leave"


def test_a_wait_ends_with_its_lease(ledger: Ledger, reserve: Reserve, clock: Clock) -> None:
    """An owner that stops asking, because it died or its job was cancelled, holds nobody up."""
    assert reserve(CHAT, Part(id="chat.work", mib=30, work=True)) == "granted"
    assert reserve(WAN) == "waiting"
    clock.advance(LEASE_S + 1)
    assert reserve(Part(id="late", mib=2)) == "granted"
    assert ledger.device_memory("card").waits == ()


def test_memory_of_a_lost_owner_is_held_until_it_is_released(
    ledger: Ledger, reserve: Reserve, clock: Clock
) -> None:
    """The end of a lease frees nothing: only who has seen that the process is gone releases its memory."""
    assert reserve(WAN) == "granted"
    clock.advance(1000)
    assert reserve(CHAT, Part(id="chat.work", mib=5, work=True)) == "waiting"
    lost = ledger.device_memory("card").residents[0]
    assert lost.lease_until < ledger.now()
    assert ledger.release_memory("card", lost.owner) == 1
    assert reserve(CHAT, Part(id="chat.work", mib=5, work=True)) == "granted"


def test_renewing_extends_leases_and_notes_what_was_measured(
    ledger: Ledger, reserve: Reserve, clock: Clock
) -> None:
    """One call a second tells an owner who waits for its parts."""
    assert reserve(WAN) == "granted"
    clock.advance(5)
    assert reserve(CHAT, Part(id="chat.work", mib=9, work=True), asks=["wan"]) == "waiting"
    memory = ledger.renew_memory("card", "wan", lease_s=LEASE_S, measured={"free_mib": 12})
    assert memory.is_asked("wan")
    assert memory.residents[0].lease_until == pytest.approx(clock() + LEASE_S, abs=0.01)
    assert ledger.device_memory("card").measured == {"free_mib": 12}
    assert ledger.device_memory("card").measured_at == pytest.approx(clock(), abs=0.01)


ENCODER, DENOISER = Part(id="wan.encoder", mib=11), Part(id="wan.denoiser", mib=19)
SMALL = 24


def test_a_later_stage_keeps_the_place_of_its_job(
    ledger: Ledger, clock: Clock, reserve: Reserve, move: Callable[..., bool]
) -> None:
    """Who came after the job began waits behind all of its stages; who came before goes first."""
    began = ledger.device_memory("card").now
    assert reserve(ENCODER, budget_mib=SMALL, turn_s=0) == "granted"
    clock.advance(1)
    assert reserve(CHAT, budget_mib=SMALL, asks=["wan.encoder"]) == "waiting"
    assert move(ENCODER, "absent")
    ledger.settle_memory("card", "wan")
    clock.advance(1)
    assert reserve(DENOISER, budget_mib=SMALL, turn_s=0) == "waiting"
    ledger.settle_memory("card", "wan")
    assert reserve(DENOISER, budget_mib=SMALL, turn_s=0, waited_since=began) == "granted"
    assert move(DENOISER, "resident")
    ledger.settle_memory("card", "wan")
    # The one behind asks for a part that the job needs again.
    assert reserve(CHAT, budget_mib=SMALL, asks=["wan.denoiser"]) == "waiting"
    assert reserve(DENOISER, budget_mib=SMALL, turn_s=0, waited_since=began) == "granted"
    ledger.settle_memory("card", "wan")
    assert reserve(DENOISER, budget_mib=SMALL, turn_s=0) == "leave"


def test_the_parts_of_a_model_share_one_turn(
    ledger: Ledger, clock: Clock, reserve: Reserve, move: Callable[..., bool]
) -> None:
    """A model that exchanges its parts is not interrupted in its turn, and does not get another one."""
    assert reserve(ENCODER) == "granted"
    assert move(ENCODER, "resident")
    ledger.settle_memory("card", "wan")
    clock.advance(TURN_S - 1)
    assert reserve(CHAT, budget_mib=SMALL, asks=["wan.encoder"]) == "waiting"
    assert reserve(Part(id="wan.vae", mib=1), budget_mib=SMALL) == "granted"
    assert move(Part(id="wan.vae", mib=1), "resident")
    ledger.settle_memory("card", "wan")
    clock.advance(2)
    assert reserve(CHAT, budget_mib=SMALL, asks=["wan.encoder", "wan.vae"]) == "waiting"
    assert reserve(Part(id="wan.vae", mib=1), budget_mib=SMALL) == "leave"
    assert reserve(DENOISER, budget_mib=SMALL) == "waiting"


def test_a_job_that_cannot_be_granted_keeps_no_part_from_others(
    ledger: Ledger, clock: Clock, reserve: Reserve, move: Callable[..., bool]
) -> None:
    """Other programs hold so much that its stage does not fit: who is behind gets the part that it has."""
    began = ledger.device_memory("card").now
    assert reserve(ENCODER, budget_mib=SMALL, turn_s=0) == "granted"
    assert move(ENCODER, "resident")
    ledger.settle_memory("card", "wan")
    clock.advance(1)
    work = Part(id="wan.work", mib=9, work=True)
    assert reserve(ENCODER, work, budget_mib=16, turn_s=0, waited_since=began) == "waiting"
    assert reserve(CHAT, budget_mib=16, asks=["wan.encoder"]) == "waiting"
    assert reserve(ENCODER, work, budget_mib=16, turn_s=0, waited_since=began) == "leave"


def test_a_model_of_the_former_release_shares_the_budget_with_parts(
    reserve: Reserve, ledger: Ledger, move: Callable[..., bool]
) -> None:
    """Its worker reports one resident, without its host and without parts."""
    assert (
        ledger.reserve_memory(
            "card", "old", [WAN], family="wan", budget_mib=BUDGET, lease_s=LEASE_S, turn_s=TURN_S
        )[0]
        == "granted"
    )
    assert reserve(ENCODER) == "granted"
    assert reserve(DENOISER) == "waiting"
    assert ledger.device_memory("card").held_mib <= BUDGET
    assert ledger.release_memory("card", "old") == 1
    assert reserve(DENOISER) == "granted"


def test_pinning_a_model_pins_all_of_its_parts(reserve: Reserve, ledger: Ledger) -> None:
    """Those that are there, and those that come later."""
    assert reserve(ENCODER) == "granted"
    assert ledger.pin_part("wan", True) == 1
    assert reserve(DENOISER) == "granted"
    assert [each.pinned for each in ledger.device_memory("card").residents] == [True, True]
