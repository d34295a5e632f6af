"""The Lua scripts of the ledger, one file a verb.

Owns: every atomic write to the ledger's keys; the libraries in `lib/` that the scripts share.
Handles: keys, scores, hash fields. A script's header names its arguments, keys, result and events.
"""

from __future__ import annotations

from importlib.resources import files

LIBRARIES = ("context", "clock", "memo", "records", "stream", "enhancement", "outbox", "jobs", "index")
"""The files of `lib/` in the order in which they build on each other."""


def load_scripts() -> dict[str, str]:
    """Return the source of every script by the name of its verb, with the libraries in front of it."""
    folder = files(__name__)
    libraries = "".join((folder / "lib" / f"{name}.lua").read_text(encoding="utf-8") for name in LIBRARIES)
    return {
        file.name.removesuffix(".lua"): libraries + file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }
