"""Which signals stop a process."""

from __future__ import annotations

import signal


def stop_signals() -> set[signal.Signals]:
    """SIGTERM and SIGINT, and SIGHUP, which a terminal sends when it closes and some supervisors to reload:
    by default it would end the process at once. It is left out where this process ignores it, as under
    `nohup`."""
    always = {signal.SIGTERM, signal.SIGINT}
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else always | {signal.SIGHUP}
