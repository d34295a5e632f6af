"""The parts of models of one process on a device that several processes share.

Memory is reserved in the ledger before it is allocated. A part leaves when somebody who waits asks for it: at
once while no stage of a job uses it, else after that stage, once the turn of its owner is over.
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
from ourvidz.vram.moving import PartMover
from ourvidz.vram.reservation import Account, Reservations
from ourvidz.vram.rows import Place

LOOK_S = 0.25
"""Pause between two looks at who waits for parts of this process."""
LOOKS_PER_RENEWAL = 4
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
        owner = owners.owner_id(worker_id)
        self._account = Account(device.id, owner, family, options.lease_s, options.turn_s)
        self._work_name = part_id(f"{family}.work", worker_id)
        self._budget = Budget(device, options.budget_mib)
        self._mover = PartMover(
            ledger,
            device,
            self._account,
            self._movables,
            host_budget_mib=options.host_budget_mib,
            sleep=sleep,
        )
        self._rows = self._mover.rows
        self._reservations = Reservations(
            ledger,
            self._account,
            self._budget,
            evict=self._mover.evict,
            is_on_device=self._mover.is_on_device,
            sleep=sleep,
        )
        self._is_out_of_memory = is_out_of_memory
        # Held while a job runs: parts are moved on request between two jobs.
        self._jobs = threading.RLock()
        # Held while parts are moved or waited for; taken after the other one.
        self._moves = threading.RLock()
        self._must_yield = False
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
        with self._jobs, self._moves:
            for name in self._movables:
                self._mover.free(name)
            self._ledger.release_memory(self._device.id, self._account.owner)

    def free(self, part: str) -> bool:
        """Free a part, on the device or on the host. Returns whether it held memory."""
        with self._jobs, self._moves:
            return self._mover.free(part)

    def places(self) -> Mapping[str, Place]:
        """Where each part of this process is."""
        return dict(self._mover.places)

    @property
    def moves(self) -> int:
        """How many moves of parts have been made: while one leaves, no use of memory can be measured."""
        return self._mover.moves

    @property
    def limit_mib(self) -> int:
        """The memory that parts and a job's work can have together at best."""
        return self._budget.limit_mib

    def must_yield(self) -> bool:
        """Whether others wait for parts that a job of this process uses, and its turn is over: the job may go
        on, but nothing new may join it."""
        return self._must_yield

    @contextmanager
    def job(self) -> Iterator[None]:
        """A job that holds its parts stage by stage inside this context: each stage keeps the place of the
        job among those who wait."""
        with self._jobs, self._reservations.one_place():
            yield

    @contextmanager
    def hold(
        self,
        parts: Sequence[str],
        *,
        work_mib: int = 0,
        waiting: Callable[[], None] = lambda: None,
        force: bool = False,
        finished: Collection[str] = (),
        later: Collection[str] = (),
    ) -> Iterator[None]:
        """Keep these parts, and `work_mib` beside them, on the device inside this context.

        `waiting` is called again and again while others have the memory; what it raises ends the wait.
        `finished`: parts of this process that leave before any others, because the job needs them no more;
        `later`: those that it needs in a later stage, which leave after other idle ones.
        Raises `OutOfMemory` at once for more than the device can ever give, or when the device stays full
        although memory was granted; what loading raises otherwise.
        """
        with self._jobs:
            try:
                with self._moves:
                    self._bring(parts, work_mib, waiting, force, finished=finished, later=later)
                    self._must_yield = False
                    self._mover.in_use, self._mover.work_mib = frozenset(parts), work_mib
                yield
            finally:
                with self._moves:
                    self._mover.in_use, self._mover.work_mib = (), 0
                    self._device.release(self._work_name)
                    self._rows.settle()

    def bring_if_free(self, parts: Sequence[str]) -> bool:
        """Bring parts onto the device if enough memory is free for all of them now. Raises what loading
        raises."""
        if sum(self._movables[name].part.mib for name in parts) > self._budget.limit_mib:
            return False

        def give_up() -> None:
            raise _NothingFree

        with self._jobs, self._moves:
            try:
                self._bring(parts, 0, give_up, force=False, spare=())
            except _NothingFree:
                return False
            finally:
                self._rows.settle()
            return True

    def evict(self, part: str) -> bool:
        """Let an idle part leave the device. False when it is not on the device, or the ledger is away."""
        with self._jobs, self._moves:
            return self._mover.evict(part)

    # -- bringing parts to the device
    def _bring(
        self,
        parts: Sequence[str],
        work_mib: int,
        waiting: Callable[[], None],
        force: bool,
        spare: Collection[str] | None = None,
        finished: Collection[str] = (),
        later: Collection[str] = (),
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
            memory = self._reservations.reserve(
                wanted, spare=spare, waiting=waiting, force=force, finished=finished, later=later
            )
            if memory is not None:
                self._budget.limit_process(self._account.owner, memory)
            if self._allocate(parts, work_mib):
                self._rows.correct(memory.residents if memory else (), busy=parts)
                return
            waiting()
        raise OutOfMemory("The device stays full although its memory was granted to this job.")

    def _allocate(self, parts: Sequence[str], work_mib: int) -> bool:
        """Bring granted parts onto the device. False, with them where they were, when the device is full."""
        places, moved = self._mover.places, dict[str, Place]()
        try:
            for name in parts:
                if places[name] != "device":
                    moved[name] = places[name]
                    self._mover.load(name)
            if "absent" in moved.values():
                self._mover.free_surplus()
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
        self._mover.take_back(moved)
        self._rows.settle()

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
        device, owner, moves = self._device.id, self._account.owner, self._mover.moves
        if renew:
            lease_s = self._account.lease_s
            memory = self._ledger.renew_memory(device, owner, lease_s=lease_s, measured=self._budget.report())
            self._budget.measure(memory)
        else:
            memory = self._ledger.device_memory(device)
        own = [each for each in memory.residents if each.owner == owner]
        self._must_yield = any(each.busy and turn_is_over(each, memory, self._account.turn_s) for each in own)
        if not self._moves.acquire(blocking=False):
            return
        try:
            if self._mover.moves != moves:
                return  # what was read is outdated
            in_use = self._mover.in_use
            self._budget.limit_process(owner, memory, reserved_mib=self._mover.reserved_mib())
            if self._rows.unsettled and not in_use:
                self._rows.settle()
            self._rows.correct(own, busy=in_use)
            self._rows.restore(memory.residents, busy=in_use)
            crowded_out = displaced(memory, self._budget) if renew else ()
            for each in own:
                asked = may_leave(each, memory, self._account.turn_s)
                if asked or (each.id in crowded_out and not each.busy):
                    self._mover.evict(each.id)
        finally:
            self._moves.release()
