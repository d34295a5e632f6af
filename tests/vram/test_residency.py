"""Parts of several owners on one emulated card: who gets memory, who leaves, and what faults do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ourvidz import testing
from ourvidz.errors import Cancelled, OutOfMemory
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Part
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
from ourvidz.vram.residency import Residency, ResidencyOptions

pytestmark = pytest.mark.system

SPEC = EmulatedSpec("card", 49, 1.0)
BUDGET_MIB = 47
WAIT_S = 20.0

MakeOwner = Callable[..., "Owner"]


class FakePart:
    """A part that records what was done with it."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.moves: list[str] = []

    def load(self) -> None:
        self.moves.append("load")

    def sleep(self) -> None:
        self.moves.append("sleep")

    def unload(self) -> None:
        self.moves.append("unload")


class Owner:
    """A process with one part, played by this one."""

    def __init__(self, ledger: Ledger, folder: Path, part: Part, **options: Any) -> None:
        self.fake = FakePart(part)
        self.name = part.id
        self.device = EmulatedDevice(SPEC, folder, worker_id=part.id)
        settings: dict[str, Any] = {
            "budget_mib": BUDGET_MIB,
            "host_budget_mib": 100,
            "lease_s": 2.0,
        }
        self.residency = Residency(
            ledger,
            self.device,
            [self.fake],
            family=part.id,
            worker_id=part.id,
            options=ResidencyOptions(**(settings | options)),
            is_out_of_memory=lambda error: isinstance(error, torch.OutOfMemoryError),
        )
        self.residency.start()

    def run(self, *, work_mib: int = 0, waiting: Callable[[], None] = lambda: None) -> None:
        """One short job."""
        with self.residency.hold([self.name], work_mib=work_mib, waiting=waiting):
            pass


@pytest.fixture
def prefix() -> Iterator[str]:
    """The key prefix of the ledger."""
    with testing.key_prefix() as prefix:
        yield prefix


@pytest.fixture
def ledger(prefix: str) -> Iterator[Ledger]:
    """The ledger that all owners share."""
    made = Ledger(testing.redis_url(), prefix=prefix)
    yield made
    made.close()


@pytest.fixture
def owner(ledger: Ledger, tmp_path: Path) -> Iterator[MakeOwner]:
    """Returns a factory of owners with one part of this name and size."""
    made: list[Owner] = []

    def make(name: str, mib: int, **options: Any) -> Owner:
        part = Part(id=name, mib=mib, pinned=options.pop("pinned", False), cost_s=options.pop("cost_s", 0.0))
        made.append(Owner(ledger, tmp_path, part, **options))
        return made[-1]

    yield make
    for each in made:
        each.residency.stop()


def test_a_part_is_loaded_once(owner: MakeOwner, ledger: Ledger) -> None:
    """The second job finds it on the device; between jobs it is idle, and its work memory is free."""
    wan = owner("wan", 30)
    wan.run(work_mib=10)
    wan.run(work_mib=10)
    assert wan.fake.moves == ["load"]
    (row,) = ledger.device_memory(wan.device.id).residents
    assert (row.state, row.busy, wan.device.own_mib()) == ("resident", False, 30)


def test_an_idle_neighbour_sleeps_and_wakes(owner: MakeOwner) -> None:
    """Where not both fit, the idle one moves to the host's memory, and comes back from there."""
    wan, chat = owner("wan", 30), owner("chat", 20)
    wan.run()
    chat.run()
    assert (wan.fake.moves, wan.residency.places()) == (["load", "sleep"], {"wan": "host"})
    wan.run()
    assert wan.fake.moves == ["load", "sleep", "load"]
    assert chat.fake.moves == ["load", "sleep"]


def test_without_memory_of_the_host_a_part_is_unloaded(owner: MakeOwner) -> None:
    """It is loaded from disk again."""
    wan, chat = owner("wan", 30, host_budget_mib=0), owner("chat", 20)
    wan.run()
    chat.run()
    wan.run()
    assert wan.fake.moves == ["load", "unload", "load"]


def test_a_pinned_part_stays_while_others_take_turns(owner: MakeOwner) -> None:
    """10 + 30 + 15 of 47: the pinned one is never moved."""
    sdxl, wan, chat = owner("sdxl", 10, pinned=True), owner("wan", 30), owner("chat", 15)
    for each in (sdxl, wan, chat, wan, sdxl):
        each.run()
    assert sdxl.fake.moves == ["load"]


def test_two_endless_queues_take_turns(owner: MakeOwner) -> None:
    """Neither waits much longer than the other's turn; each runs many jobs in a turn."""
    turn_s, end = 1.5, threading.Event()
    owners = [owner("wan", 30, turn_s=turn_s), owner("chat", 20, turn_s=turn_s)]
    jobs: dict[str, int] = {}

    def work(each: Owner) -> None:
        while not end.is_set():
            each.run()
            jobs[each.name] = jobs.get(each.name, 0) + 1
            time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(each,)) for each in owners]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WAIT_S
    while min(len(each.fake.moves) for each in owners) < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    end.set()
    for thread in threads:
        thread.join()
    assert all(each.fake.moves[:3] == ["load", "sleep", "load"] for each in owners)
    assert all(jobs[each.name] > 3 * len(each.fake.moves) for each in owners), jobs


def test_a_job_that_is_too_large_fails_at_once_and_evicts_nobody(owner: MakeOwner) -> None:
    """The error names both sizes."""
    wan, huge = owner("wan", 30), owner("huge", 40)
    wan.run()
    with pytest.raises(OutOfMemory, match=r"needs 48 MiB .* budget is 47"):
        huge.run(work_mib=8)
    assert wan.fake.moves == ["load"]


def test_a_process_allocates_only_what_others_have_not_reserved(
    owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that needs more than was expected falls back; its neighbour has what it was granted."""
    wan, chat = owner("wan", 30), owner("chat", 10)
    limits: dict[str, list[int]] = {"wan": [], "chat": []}
    for each in (wan, chat):
        monkeypatch.setattr(each.device, "limit", limits[each.name].append)
    with wan.residency.hold(["wan"], work_mib=2):
        assert limits["wan"][0] == BUDGET_MIB
        with chat.residency.hold(["chat"], work_mib=1):
            assert limits["chat"][0] == BUDGET_MIB - 32
            deadline = time.monotonic() + WAIT_S
            while limits["wan"][-1] != BUDGET_MIB - 11 and time.monotonic() < deadline:
                threading.Event().wait(0.05)
            assert limits["wan"][-1] == BUDGET_MIB - 11
            assert min(limits["wan"]) >= 32


def test_a_wait_can_be_given_up(owner: MakeOwner, ledger: Ledger) -> None:
    """A job that is cancelled while it waits leaves the line, and nobody moves for it afterwards."""
    wan, chat = owner("wan", 30), owner("chat", 20)

    def cancel() -> None:
        raise Cancelled("the job was cancelled")

    with wan.residency.hold(["wan"]):
        with pytest.raises(Cancelled):
            chat.run(waiting=cancel)
        assert ledger.device_memory(wan.device.id).waits == ()
    assert wan.fake.moves == ["load"]


def test_memory_that_a_stranger_took_is_waited_for(owner: MakeOwner, tmp_path: Path) -> None:
    """The allocation that was granted fails, is rolled back, and succeeds once the stranger has left."""
    stranger = EmulatedDevice(SPEC, tmp_path, worker_id="stranger")
    stranger.allocate("something", 25)
    wan = owner("wan", 30)
    waited = []

    def waiting() -> None:
        waited.append(1)
        stranger.release("something")

    def release_soon() -> None:
        stranger.release("something")

    timer = threading.Timer(1.5, release_soon)
    timer.start()
    wan.run(waiting=waiting)
    timer.join()
    assert wan.fake.moves[-1] == "load"
    assert wan.residency.places() == {"wan": "device"}


def test_an_idle_part_leaves_when_a_stranger_takes_its_memory(owner: MakeOwner, tmp_path: Path) -> None:
    """Together they would hold more than the card has; a pinned part stays."""
    wan, sdxl = owner("wan", 30), owner("sdxl", 10, pinned=True)
    sdxl.run()
    wan.run()
    stranger = EmulatedDevice(SPEC, tmp_path, worker_id="stranger")
    stranger.allocate("something", 9)
    deadline = time.monotonic() + WAIT_S
    while wan.residency.places()["wan"] == "device" and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert (wan.residency.places(), sdxl.residency.places()) == ({"wan": "host"}, {"sdxl": "device"})
    assert stranger.free_mib() == SPEC.total_mib - 19


HOLDER = """
import sys
from pathlib import Path
from ourvidz.records.devices import Part
from ourvidz.ledger.store import Ledger
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
from ourvidz.vram.residency import Residency, ResidencyOptions
from tests.vram.test_residency import BUDGET_MIB, SPEC, FakePart
url, prefix, folder = sys.argv[1:]
residency = Residency(
    Ledger(url, prefix=prefix), EmulatedDevice(SPEC, Path(folder), worker_id="wan"),
    [FakePart(Part(id="wan", mib=30))], family="wan", worker_id="wan",
    options=ResidencyOptions(budget_mib=BUDGET_MIB), is_out_of_memory=lambda error: False,
)
residency.start()
with residency.hold(["wan"], work_mib=5):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_memory_of_a_killed_process_is_given_to_who_waits(
    owner: MakeOwner, prefix: str, tmp_path: Path
) -> None:
    """Its parts are released as soon as its pid is gone, also to its own successor."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, testing.redis_url(), prefix, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        killed = []

        def waiting() -> None:
            if not killed:
                killed.append(holder.kill())
                holder.wait()

        owner("chat", 20).run(waiting=waiting)
    assert killed
    wan = owner("wan", 30)
    wan.run()
    assert wan.fake.moves == ["load"]


# -- when the ledger and the device disagree
def ends(job: Callable[[], object], *, within_s: float = WAIT_S) -> bool:
    """Whether a job ends."""
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()


def test_an_eviction_of_which_the_answer_was_lost_is_carried_out(owner: MakeOwner, ledger: Ledger) -> None:
    """The ledger says `evicting`, and the process does not know: it neither loops nor keeps the memory."""
    wan = owner("wan", 30)
    wan.run()
    (row,) = ledger.device_memory(wan.device.id).residents
    ledger.move_resident(wan.device.id, row.owner, "wan", "evicting", mib=30, host_budget_mib=100)
    assert ends(wan.run)
    ledger.move_resident(wan.device.id, row.owner, "wan", "evicting", mib=30, host_budget_mib=100)
    assert ends(owner("chat", 20).run)


def test_a_grant_of_which_the_answer_was_lost_is_given_back(owner: MakeOwner, ledger: Ledger) -> None:
    """The job ended before it knew of its grant; nothing was loaded, so nothing is held."""
    wan = owner("wan", 30)
    wan.run()
    (row,) = ledger.device_memory(wan.device.id).residents
    wan.residency.free("wan")
    options: dict[str, Any] = {"family": "wan", "budget_mib": BUDGET_MIB, "lease_s": 2.0, "turn_s": 60.0}
    ledger.reserve_memory(wan.device.id, row.owner, [Part(id="wan", mib=30)], **options)
    ledger.settle_memory(wan.device.id, row.owner)
    assert ends(owner("chat", 20).run)


def test_models_are_known_again_after_the_ledger_lost_its_data(owner: MakeOwner, ledger: Ledger) -> None:
    """Nobody is granted memory that is taken, and the model leaves for others as before."""
    wan, chat = owner("wan", 30), owner("chat", 20)
    wan.run()
    lose_data(ledger, wan)
    deadline = time.monotonic() + WAIT_S
    while not ledger.device_memory(wan.device.id).residents and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    (row,) = ledger.device_memory(wan.device.id).residents
    assert (row.id, row.state, row.mib, row.busy) == ("wan", "resident", 30, False)
    assert ends(chat.run)
    assert wan.fake.moves == ["load", "sleep"]


def test_a_job_after_the_ledger_lost_its_data_leaves_its_model_movable(
    owner: MakeOwner, ledger: Ledger
) -> None:
    """The model is granted anew and was never loaded anew: it is resident, and leaves for others."""
    wan, chat = owner("wan", 30), owner("chat", 20)
    wan.run()
    lose_data(ledger, wan)
    wan.run()
    assert [each.state for each in ledger.device_memory(wan.device.id).residents] == ["resident"]
    assert ends(chat.run)


def lose_data(ledger: Ledger, owner: Owner) -> None:
    """Delete the rows of an owner behind its back."""
    (row,) = ledger.device_memory(owner.device.id).residents
    ledger.release_memory(owner.device.id, row.owner)


def test_a_part_that_cannot_sleep_is_unloaded(owner: MakeOwner) -> None:
    """The memory of the host may be full; the device is needed all the same."""

    def fail() -> None:
        raise RuntimeError("no pinned memory")

    wan, chat = owner("wan", 30), owner("chat", 20)
    wan.fake.sleep = fail  # type: ignore[method-assign]
    wan.run()
    assert ends(chat.run)
    assert (wan.fake.moves, wan.residency.places()) == (["load", "unload"], {"wan": "absent"})


def test_memory_that_is_never_freed_stops_nobody(owner: MakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process goes on, and others are not granted what is not free."""
    monkeypatch.setattr("ourvidz.vram.moving.CONFIRM_S", 0.3)
    wan = owner("wan", 30)
    wan.run()
    monkeypatch.setattr(wan.device, "release", lambda name: None)
    assert ends(lambda: wan.residency.evict("wan"))
    assert wan.residency.places() == {"wan": "host"}


def test_a_request_that_strangers_leave_no_room_for_moves_nobody(
    owner: MakeOwner, tmp_path: Path, ledger: Ledger
) -> None:
    """It waits for the stranger; meanwhile the others keep their models and are granted what is left."""
    stranger = EmulatedDevice(SPEC, tmp_path, worker_id="stranger")
    stranger.allocate("something", 25)
    sdxl, wan, chat = owner("sdxl", 5), owner("wan", 30), owner("chat", 15)
    sdxl.run()
    done = threading.Event()

    def wait() -> None:
        if done.is_set():
            raise Cancelled("the job was cancelled")

    def job() -> None:
        with pytest.raises(Cancelled):
            wan.run(waiting=wait)

    thread = threading.Thread(target=job)
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not ledger.device_memory(wan.device.id).waits and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert ends(chat.run, within_s=5)
    done.set()
    thread.join()
    assert (sdxl.fake.moves, chat.fake.moves) == (["load"], ["load"])


def test_a_budget_above_the_card_is_that_of_the_card(owner: MakeOwner) -> None:
    """A job between the two would wait for ever."""
    with pytest.raises(OutOfMemory, match="budget is"):
        owner("huge", 60_000, budget_mib=100_000).run()


def test_bringing_a_part_takes_free_memory_only(ledger: Ledger, tmp_path: Path) -> None:
    """Another part of the same process stays."""
    first, second = FakePart(Part(id="first", mib=30)), FakePart(Part(id="second", mib=20))
    residency = Residency(
        ledger,
        EmulatedDevice(SPEC, tmp_path, worker_id="chat"),
        [first, second],
        family="chat",
        worker_id="chat",
        options=ResidencyOptions(budget_mib=BUDGET_MIB, host_budget_mib=100),
        is_out_of_memory=lambda error: isinstance(error, torch.OutOfMemoryError),
    )
    assert residency.bring_if_free(["first"])
    assert not residency.bring_if_free(["second"])
    assert first.moves == ["load"]


def test_a_process_that_waits_lets_its_other_parts_leave(
    owner: MakeOwner, ledger: Ledger, tmp_path: Path
) -> None:
    """It waits behind somebody who waits for one of them: neither would ever go on."""
    held, wanted = FakePart(Part(id="held", mib=15)), FakePart(Part(id="wanted", mib=15))
    chat = Residency(
        ledger,
        EmulatedDevice(SPEC, tmp_path, worker_id="chat"),
        [held, wanted],
        family="chat",
        worker_id="chat",
        options=ResidencyOptions(budget_mib=BUDGET_MIB, host_budget_mib=100, lease_s=2.0),
        is_out_of_memory=lambda error: isinstance(error, torch.OutOfMemoryError),
    )
    wan = owner("wan", 35)
    with chat.hold(["held"]):
        """It stays on the device, idle. The thread of this process does not run yet."""
    waiting = threading.Event()
    wan_job = threading.Thread(target=lambda: wan.run(waiting=waiting.set), daemon=True)
    wan_job.start()
    assert waiting.wait(WAIT_S)

    def run() -> None:
        with chat.hold(["wanted"]):
            """A job of the same process on its other part."""

    assert ends(run)
    wan_job.join(WAIT_S)
    assert not wan_job.is_alive()
    assert (held.moves, wan.fake.moves) == (["load", "sleep"], ["load", "sleep"])


def test_others_leave_while_a_pinned_model_still_works(owner: MakeOwner) -> None:
    """The request fits when its job has ended; what must leave beside that leaves before."""
    sdxl, wan, chat = owner("sdxl", 10, pinned=True), owner("wan", 30), owner("chat", 15)
    chat.run()
    with sdxl.residency.hold(["sdxl"], work_mib=10):
        job = threading.Thread(target=wan.run, daemon=True)
        job.start()
        deadline = time.monotonic() + 5
        while chat.residency.places()["chat"] == "device" and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert chat.residency.places() == {"chat": "host"}
    job.join(WAIT_S)
    assert (wan.fake.moves, sdxl.fake.moves) == (["load"], ["load"])
