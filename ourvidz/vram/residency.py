"""The models of one process on a device that several processes share.

Memory is reserved in the ledger before it is allocated. A part leaves when somebody who waits asks for it: at
once while it is idle, after the job once the turn of its owner is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ourvidz import log
from ourvidz.errors import OutOfMemory, WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Part, part_id
from ourvidz.vram import owners
from ourvidz.vram.budget import Budget
from ourvidz.vram.device import Device
from ourvidz.vram.leaving import displaced, may_leave, turn_is_over
from ourvidz.vram.movable import Movable
from ourvidz.vram.reservation import POLL_S, Account, Reservations
from ourvidz.vram.rows import LedgerRows, Place

LOOK_S = 0.25
"""Pause between two looks at who waits for parts of this process."""
LOOKS_PER_RENEWAL = 4
CONFIRM_S = 30.0
"""How long an eviction waits for the device to show that the memory is free; then it says in the log that it
is not."""
TRIES = 4
"""How often a grant is tried whose allocation failed, because somebody else took memory meanwhile."""

_log = log.get(__name__)


class _NothingFree(Exception):
    """Not enough memory is free, and nobody is asked to leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyOptions:
    """What an operator can set, in MiB and seconds. Without `budget_mib` all memory but a reserve is given
    out. `host_budget_mib`: memory of the host in which parts may sleep. `turn_s`: how long an owner keeps the
    device while others wait."""

    budget_mib: int | None = None
    host_budget_mib: int = 0
    turn_s: float = 60.0
    lease_s: float = 10.0


class Residency:
    """Holds the parts of one process, and moves them as its jobs and other processes need.

    `start` begins to renew leases and to answer those who wait, on a thread of its own, until `stop`.
    `is_out_of_memory` recognises the errors of a full device.
    """

    def __init__(
        self,
        ledger: Ledger,
        device: Device,
        movables: Sequence[Movable],
        *,
        family: str,
        worker_id: str,
        options: ResidencyOptions,
        is_out_of_memory: Callable[[BaseException], bool],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._device = device
        self._movables = {each.part.id: each for each in movables}
        self._places: dict[str, Place] = dict.fromkeys(self._movables, "absent")
        owner = owners.owner_id(worker_id)
        self._account = Account(device.id, owner, family, options.lease_s, options.turn_s)
        self._work_name = part_id(f"{family}.work", worker_id)
        self._host_budget_mib = options.host_budget_mib
        self._budget = Budget(device, options.budget_mib)
        self._rows = LedgerRows(
            ledger, self._account, self._movables, self._places, evict=self._evict, sleep=sleep
        )
        self._reservations = Reservations(
            ledger,
            self._account,
            self._budget,
            evict=self._evict,
            is_on_device=lambda name: self._places.get(name) == "device",
            sleep=sleep,
        )
        self._is_out_of_memory = is_out_of_memory
        self._sleep = sleep
        self._lock = threading.RLock()
        self._must_yield = False
        self._working = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_and_renew, name="residency", daemon=True)

    def start(self) -> None:
        """Begin to renew leases and to answer those who wait."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give everything back."""
        self._stopped.set()
        self.unload()

    def unload(self) -> None:
        """Free all parts of this process, on the device and on the host."""
        with self._lock:
            for name in self._movables:
                self.free(name)
            self._ledger.release_memory(self._device.id, self._account.owner)

    def free(self, part: str) -> bool:
        """Free a part, on the device or on the host. Returns whether it held memory."""
        with self._lock:
            held = self._places[part] != "absent"
            self._movables[part].unload()
            self._device.release(part)
            self._places[part] = "absent"
            if held:
                self._rows.report(part, "absent")
            return held

    def places(self) -> Mapping[str, Place]:
        """Where each part of this process is."""
        return dict(self._places)

    @property
    def limit_mib(self) -> int:
        """The memory that parts and a job's work can have together at best."""
        return self._budget.limit_mib

    def must_yield(self) -> bool:
        """Whether others wait for parts of this process whose turn is over: a job that runs may go on, but
        nothing new may join it."""
        return self._must_yield

    @contextmanager
    def hold(
        self,
        parts: Sequence[str],
        *,
        work_mib: int = 0,
        waiting: Callable[[], None] = lambda: None,
        force: bool = False,
    ) -> Iterator[None]:
        """Keep these parts, and `work_mib` beside them, on the device inside this context.

        `waiting` is called again and again while others have the memory; what it raises ends the wait. Raises
        `OutOfMemory` at once for more than the device can ever give, or when the device stays full although
        memory was granted; what loading raises otherwise.
        """
        with self._lock:
            try:
                self._bring(parts, work_mib, waiting, force)
                self._must_yield, self._working = False, True
                yield
            finally:
                self._working = False
                self._device.release(self._work_name)
                self._rows.settle()

    def bring_if_free(self, part: str) -> bool:
        """Bring a part onto the device if enough memory is free for it now. Raises what loading raises."""

        def give_up() -> None:
            raise _NothingFree

        with self._lock:
            try:
                self._bring([part], 0, give_up, force=False, spare=())
            except _NothingFree:
                return False
            finally:
                self._rows.settle()
            return True

    def evict(self, part: str) -> bool:
        """Let an idle part leave the device. False when it is not on the device, or the ledger is away."""
        with self._lock:
            return self._evict(part)

    # -- bringing parts to the device
    def _bring(
        self,
        parts: Sequence[str],
        work_mib: int,
        waiting: Callable[[], None],
        force: bool,
        spare: Collection[str] | None = None,
    ) -> None:
        """Reserve and load parts; `spare` are those of this process that may leave for them, by default
        all."""
        spare = self._movables if spare is None else spare
        for _ in range(TRIES):
            wanted = [self._movables[name].part for name in parts]
            if work_mib:
                wanted.append(Part(id=self._work_name, mib=work_mib, work=True))
            needed, limit = sum(part.mib for part in wanted), self._budget.limit_mib
            if needed > limit:
                raise OutOfMemory(f"This job needs {needed} MiB of device memory, the budget is {limit} MiB.")
            memory = self._reservations.reserve(wanted, spare=spare, waiting=waiting, force=force)
            if self._allocate(parts, work_mib):
                self._rows.correct(memory.residents if memory else (), busy=True)
                return
            waiting()
        raise OutOfMemory("The device stays full although its memory was granted to this job.")

    def _allocate(self, parts: Sequence[str], work_mib: int) -> bool:
        """Bring granted parts onto the device. False, with them where they were, when the device is full."""
        moved: dict[str, Place] = {}
        try:
            for name in parts:
                if self._places[name] != "device":
                    moved[name] = self._places[name]
                    self._load(name)
            if work_mib:
                self._device.allocate(self._work_name, work_mib)
            return True
        except BaseException as error:
            if not self._is_out_of_memory(error):
                self._roll_back(moved)
                raise
            _log.warning("device_memory_taken", device=self._device.id, parts=parts, reason=str(error))
        # After the except block: until then the error's traceback keeps the tensors alive.
        self._roll_back(moved)
        with suppress(WorkerUnavailable):
            self._budget.measure(self._ledger.device_memory(self._device.id))
        return False

    def _roll_back(self, moved: Mapping[str, Place]) -> None:
        for name, place in moved.items():
            self._take_back(name, place)
        self._rows.settle()

    def _load(self, name: str) -> None:
        movable, woken = self._movables[name], self._places[name] == "host"
        started = time.perf_counter()
        self._device.allocate(name, movable.part.mib)
        movable.load()
        # Loaded, it knows its true size.
        self._device.allocate(name, movable.part.mib)
        self._places[name] = "device"
        self._rows.report(name, "resident", busy=True)
        seconds = round(time.perf_counter() - started, 3)
        _log.info("part_loaded", part=name, mib=movable.part.mib, woken=woken, seconds=seconds)

    def _take_back(self, name: str, place: Place) -> None:
        """Take back a part that was being brought: to the host if it slept there."""
        if place == "host":
            self._movables[name].sleep()
        else:
            self._movables[name].unload()
        self._device.release(name)
        self._places[name] = place
        self._rows.report(name, "asleep" if place == "host" else "absent")

    # -- leaving
    def _evict(self, name: str) -> bool:
        if self._places[name] != "device":
            return False
        movable = self._movables[name]
        size_mib, before_mib = movable.part.mib, self._device.own_mib()
        try:
            may_sleep = self._ledger.move_resident(
                self._device.id,
                self._account.owner,
                name,
                "evicting",
                mib=size_mib,
                host_budget_mib=self._host_budget_mib,
            )
        except WorkerUnavailable:
            return False
        if may_sleep:
            try:
                movable.sleep()
            except Exception:  # noqa: BLE001  pinned memory is scarce, and this part must leave all the same
                _log.exception("part_not_asleep", part=name)
                may_sleep = False
        if not may_sleep:
            movable.unload()
        self._device.release(name)
        self._places[name] = "host" if may_sleep else "absent"
        self._confirm(name, before_mib - size_mib // 2)
        self._rows.report(name, "asleep" if may_sleep else "absent", mib=size_mib)
        _log.info("part_evicted", part=name, mib=size_mib, asleep=may_sleep)
        return True

    def _confirm(self, name: str, expected_mib: int) -> None:
        """Wait until the device shows that the memory is free: others would be granted what is not there.
        Half of a part's size allows for blocks that torch keeps. After `CONFIRM_S` what is still held counts
        as memory of a stranger, which nobody is granted."""
        deadline = time.monotonic() + CONFIRM_S
        while (own_mib := self._device.own_mib()) > max(0, expected_mib):
            if time.monotonic() > deadline:
                _log.error("memory_not_freed", part=name, device=self._device.id, own_mib=own_mib)
                return
            self._sleep(POLL_S)

    # -- the thread
    def _look_and_renew(self) -> None:
        looks = 0
        while not self._stopped.wait(LOOK_S):
            looks += 1
            try:
                self._look(renew=looks % LOOKS_PER_RENEWAL == 0)
            except WorkerUnavailable:
                _log.warning("device_memory_unknown", device=self._device.id)
            except Exception:  # noqa: BLE001  if this thread ended, nobody else would get the memory of this process
                _log.exception("device_memory_unknown", device=self._device.id)

    def _look(self, *, renew: bool) -> None:
        """Answer those who wait; with `renew` also extend the leases of this process."""
        device, owner = self._device.id, self._account.owner
        if renew:
            lease_s = self._account.lease_s
            memory = self._ledger.renew_memory(device, owner, lease_s=lease_s, measured=self._budget.report())
            self._budget.measure(memory)
        else:
            memory = self._ledger.device_memory(device)
        own = [each for each in memory.residents if each.owner == owner]
        self._must_yield = any(turn_is_over(each, memory, self._account.turn_s) for each in own)
        if not self._lock.acquire(blocking=False):
            if self._working:
                self._rows.restore(memory.residents, busy=True)
            return
        try:
            if self._rows.unsettled:
                self._rows.settle()
            self._rows.correct(own, busy=False)
            self._rows.restore(memory.residents, busy=False)
            crowded_out = displaced(memory, self._budget) if renew else ()
            for each in own:
                asked = may_leave(each, memory, self._account.turn_s)
                if asked or (each.id in crowded_out and not each.busy):
                    self._evict(each.id)
        finally:
            self._lock.release()
