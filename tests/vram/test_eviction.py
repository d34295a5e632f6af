"""Which parts leave: a pure function."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given

from ourvidz.records.devices import Resident
from ourvidz.vram.eviction import evictions

NOW = 1000.0
BUDGET = 47


def resident(part: str, mib: int, **changes: object) -> Resident:
    """An idle resident part, used a moment ago."""
    row = Resident(
        id=part,
        mib=mib,
        cost_s=1.0,
        owner=part,
        family=part,
        state="resident",
        busy=False,
        since=0.0,
        used_at=NOW,
        turn_began=0.0,
        lease_until=NOW + 10,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


SDXL = resident("sdxl", 10, pinned=True)
CHAT = resident("chat", 15)
WAN = resident("wan", 30)


def test_nobody_leaves_when_there_is_room() -> None:
    """A request that fits asks for nothing."""
    assert evictions([SDXL, CHAT], 20, BUDGET, NOW).parts == ()


def test_what_is_cheapest_to_bring_back_per_mib_leaves_first() -> None:
    """Cost, size and likelihood of use decide together."""
    cheap, dear = resident("a", 10, cost_s=1.0), resident("b", 10, cost_s=9.0)
    assert evictions([cheap, dear], 35, BUDGET, NOW).parts == ("a",)
    unused = replace(dear, used_at=NOW - 3600)
    assert evictions([cheap, unused], 35, BUDGET, NOW).parts == ("b",)
    assert evictions([cheap, unused], 35, BUDGET, NOW, likely={"b": 1.0, "a": 0.01}).parts == ("a",)


def test_a_pinned_part_leaves_when_the_request_cannot_fit_beside_it() -> None:
    """What the request has already counts for it: else it would wait for ever."""
    assert evictions([SDXL, WAN], 7, BUDGET, NOW, keep=["wan"]).parts == ()
    plan = evictions([SDXL, WAN], 8, BUDGET, NOW, keep=["wan"])
    assert (plan.parts, plan.forced) == (("sdxl",), True)


def test_what_the_job_has_finished_with_leaves_before_all_others() -> None:
    """Its text encoder was used a moment ago, and is of no use until the next job."""
    encoder, vae = resident("wan.encoder", 11), resident("wan.vae", 1)
    unused = replace(CHAT, used_at=NOW - 3600)
    assert evictions([encoder, vae, unused], 25, BUDGET, NOW, first=["wan.encoder"]).parts == ("wan.encoder",)
    assert set(evictions([encoder, vae, unused], 40, BUDGET, NOW, first=["wan.encoder"]).parts) == {
        "wan.encoder",
        "chat",
    }


def test_of_parts_of_which_one_is_enough_the_cheapest_leaves() -> None:
    """Per MiB the large one is as cheap, but little memory is needed."""
    large, small = resident("wan.transformer", 18, cost_s=18.0), resident("wan.vae", 1, cost_s=1.0)
    assert evictions([large, small], 29, BUDGET, NOW).parts == ("wan.vae",)
    assert evictions([large, small], 30, BUDGET, NOW).parts == ("wan.transformer",)


def test_what_the_job_needs_next_leaves_after_all_others_that_are_idle() -> None:
    """But before it waits for parts in use."""
    later, busy = resident("wan.transformer", 19, cost_s=0.1), resident("other", 10, busy=True)
    dear = replace(CHAT, cost_s=60.0)
    assert evictions([later, dear, busy], 10, BUDGET, NOW, last=["wan.transformer"]).parts == ("chat",)
    assert evictions([later, dear, busy], 30, BUDGET, NOW, last=["wan.transformer"]).parts == (
        "chat",
        "wan.transformer",
    )


def test_an_idle_part_of_a_working_owner_does_not_free_what_its_job_works_in() -> None:
    """That memory goes with the part that the job uses."""
    encoder, denoiser = resident("encoder", 11, owner="wan"), resident("denoiser", 19, owner="wan", busy=True)
    work = resident("wan.work", 8, owner="wan", work=True, busy=True)
    assert evictions([encoder, denoiser, work], 20, BUDGET, NOW).parts == ("encoder",)
    assert "denoiser" in evictions([encoder, denoiser, work], 21, BUDGET, NOW).parts


def test_idle_parts_leave_before_busy_ones() -> None:
    """A busy part is asked only when the idle ones are not enough."""
    busy = replace(resident("a", 20), busy=True)
    assert evictions([busy, CHAT], 25, BUDGET, NOW).parts == ("chat",)
    assert set(evictions([busy, CHAT], 40, BUDGET, NOW).parts) == {"a", "chat"}


def test_no_more_parts_leave_than_needed() -> None:
    """A small cheap part stays when a large one has to leave anyway."""
    small, large = resident("small", 5, cost_s=0.1), resident("large", 30, cost_s=50.0)
    assert evictions([small, large], 40, BUDGET, NOW).parts == ("large",)


def test_pinned_parts_leave_only_by_force_or_when_the_card_is_too_small() -> None:
    """SDXL stays while a request fits beside it."""
    assert evictions([SDXL, CHAT], 30, BUDGET, NOW).parts == ("chat",)
    plan = evictions([SDXL, CHAT], 40, BUDGET, NOW)
    assert (set(plan.parts), plan.forced, plan.enough) == ({"sdxl", "chat"}, True, True)
    assert evictions([SDXL], 30, 35, NOW, force=True).parts == ("sdxl",)


def test_parts_that_are_leaving_already_count() -> None:
    """Nobody else is asked while enough memory is on its way."""
    leaving = replace(WAN, state="evicting")
    assert evictions([SDXL, leaving], 15, BUDGET, NOW).parts == ()


def test_a_request_larger_than_the_card_is_not_enough() -> None:
    """The plan says that it does not help."""
    assert not evictions([SDXL, CHAT], 60, BUDGET, NOW).enough


def test_the_memory_of_a_running_job_goes_with_its_model() -> None:
    """It is never asked for itself: it ends with the job."""
    running = replace(WAN, busy=True)
    work = resident("wan.work", 5, owner="wan", family="wan", busy=True, work=True)
    plan = evictions([SDXL, running, work], 20, BUDGET, NOW)
    assert (plan.parts, plan.enough) == (("wan",), True)
    assert evictions([SDXL, running, work], 36, BUDGET, NOW).parts == ("wan",)


def test_parts_that_the_request_needs_stay() -> None:
    """A pipeline that needs one more part does not ask its others to leave."""
    encoder = resident("wan.encoder", 10, owner="wan", cost_s=0.1)
    assert evictions([encoder, CHAT], 30, BUDGET, NOW, keep=["wan.encoder"]).parts == ("chat",)


@given(
    st.lists(
        st.builds(
            lambda mib, cost, busy, pinned, state: (mib, cost, busy, pinned, state),
            st.integers(1, 40),
            st.floats(0, 100),
            st.booleans(),
            st.booleans(),
            st.sampled_from(["resident", "asleep", "evicting", "loading"]),
        ),
        max_size=8,
    ),
    st.integers(0, 60),
    st.booleans(),
)
def test_plans_are_sufficient_and_minimal(
    rows: list[tuple[int, float, bool, bool, str]], needed: int, force: bool
) -> None:
    """Whatever resides: a plan that says so is enough, and no part of it could be left out."""
    residents = [
        resident(f"p{index}", mib, cost_s=cost, busy=busy, pinned=pinned, state=state)
        for index, (mib, cost, busy, pinned, state) in enumerate(rows)
    ]
    plan = evictions(residents, needed, BUDGET, NOW, force=force)
    sizes = {each.id: each.mib for each in residents}
    stays = sum(each.mib for each in residents if each.state in ("resident", "loading"))
    after = stays - sum(sizes[part] for part in plan.parts)
    assert plan.enough == (after + needed <= BUDGET)
    if plan.enough:
        assert all(after + sizes[part] + needed > BUDGET for part in plan.parts)
    pinned = {each.id for each in residents if each.pinned}
    assert plan.forced == bool(pinned & set(plan.parts))
