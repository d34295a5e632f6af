"""The Lua scripts of the ledger, one file a verb.

Owns: every atomic write to the ledger's keys; the libraries in `lib/` that the scripts share.
Handles: keys, scores, hash fields. A script's header names its arguments, keys, result and events.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

LIBRARIES = (
    "context",
    "clock",
    "counters",
    "memo",
    "records",
    "stream",
    "enhancement",
    "outbox",
    "jobs",
    "index",
    "limits",
    "devices",
    "gpu_usage",
    "ended",
)
"""The files of `lib/` in the order in which they build on each other."""

NEW_JOBS = frozenset({"register", "reopen", "draw_allowance"})
"""Scripts that a full server refuses: they begin work, or count requests, each of another caller."""
READING = frozenset(
    {
        "vitals",
        "workers",
        "page",
        "queue_position",
        "due_deliveries",
        "quarantined",
        "expired",
        "startable",
        "now",
        "device_memory",
    }
)
"""Scripts without a write; `page` does without its own where the server takes none."""
EXEMPTION = "redis.call('DEL', key('memory_limit'))\n"
"""Makes a full server (`noeviction`) run the rest of a script: it refuses only the first write of a script,
and never a deletion. All versions do this; the flag `allow-oom` needs Redis 7. The key never exists."""


@cache
def load_scripts() -> Mapping[str, str]:
    """Return the source of every script by the name of its verb, with the libraries in front of it.

    All but those that begin work are exempt from the server's memory limit, with the reading of the clock.
    """
    folder = files(__name__)
    context, *others = [(folder / "lib" / f"{name}.lua").read_text(encoding="utf-8") for name in LIBRARIES]
    libraries = "".join(others)
    sources = {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }
    scripts = {
        verb: context + ("" if verb in NEW_JOBS | READING else EXEMPTION) + libraries + source
        for verb, source in sources.items()
    }
    return MappingProxyType(scripts)
