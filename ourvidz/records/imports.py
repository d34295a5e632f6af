"""What is stored of entries of raw lists that were refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ourvidz.jobs.outcome import Outcome


@dataclass(frozen=True, slots=True)
class RefusedJob:
    """What is known of a job that was refused, for its `failed` callback. `callback_url` None is the default
    receiver."""

    job_id: str
    callback_metadata: dict[str, Any]
    callback_url: str | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RefusedImport:
    """A refused entry that is kept. `refused_id` is a hash of its `report`, the JSON as it is stored; `at` is
    in Unix seconds. The entry may hold prompts."""

    refused_id: str
    at: float
    list_name: str
    code: str
    reason: str
    wrong_field: str | None
    entry: str = field(repr=False)
    report: str = field(repr=False)


def load_refused(report: str) -> RefusedImport:
    """An entry from its report."""
    document = json.loads(report)
    return RefusedImport(
        refused_id=hashlib.sha256(report.encode()).hexdigest()[:12],
        at=document["at"],
        list_name=document["list"],
        code=document["code"],
        reason=document["reason"],
        wrong_field=document["field"],
        entry=document["entry"],
        report=report,
    )
