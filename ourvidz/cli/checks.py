"""What one look of `ourvidz doctor` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint

NETWORK_S = 5
"""How long a server may take to answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    reason: str
    fix: str = ""


def ok(name: str, reason: str) -> Check:
    """All is well."""
    return Check(name, "ok", reason)


def failed(name: str, reason: str, fix: str) -> Check:
    """Something is missing, and this would mend it."""
    return Check(name, "failed", reason, fix)


def skipped(name: str, reason: str) -> Check:
    """There is nothing to look at."""
    return Check(name, "skipped", reason)


def check_checkpoint(name: str, family: str, find: Callable[[], Checkpoint]) -> Check:
    """Whether the weights of a family are there."""
    try:
        checkpoint = find()
    except ModelLoadError as missing:
        return failed(name, missing.message, f"set OURVIDZ_{family.upper()}_MODEL to the checkpoint")
    return ok(name, f"{checkpoint.name} ({checkpoint.kind}) at {checkpoint.path}")
