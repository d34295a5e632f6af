"""The device memory of a model whose parts are moved one by one: which stage of a job uses which part."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from ourvidz.pipelines.stage_clock import StageClock


class StageMemory(Protocol):
    """Has the parts of a model on the device while stages use them."""

    def in_use(self, part: str, *, finished: Collection[str] = ()) -> AbstractContextManager[None]:
        """Have a part on the device inside this context, with memory for the stage to work in. Waits while
        others have the memory; `finished` are parts that the job needs no more, which leave first. Raises
        `OutOfMemory` for more than the device can give, and what ends a job while it waits."""


class AlwaysResident:
    """The memory of a model that is on its device as a whole; implements `StageMemory`."""

    def in_use(self, part: str, *, finished: Collection[str] = ()) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing is moved."""
        return nullcontext()


class Unmeasured:
    """Another memory, waiting for which counts for no stage of a job; implements `StageMemory`."""

    def __init__(self, memory: StageMemory, clock: StageClock) -> None:
        self._memory = memory
        self._clock = clock

    @contextmanager
    def in_use(self, part: str, *, finished: Collection[str] = ()) -> Iterator[None]:
        """Have the part on the device as the other memory does."""
        with ExitStack() as stack:
            with self._clock.paused():
                stack.enter_context(self._memory.in_use(part, finished=finished))
            yield
