"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
DIES_WITH = signal.SIGKILL
"""The signal at the death of the parent for children that hold nothing worth saving."""
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def dying_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """Return a `preexec_fn` that makes the kernel send `signum` to the child when its parent dies.

    The parent is the *thread* that starts the child: it must live as long as the child is needed. None on
    systems without `prctl`.
    """
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)

    return die_with_parent
