"""The payload page lists the catalog of job types and every field that the parser reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.jobs import dialects
from ourvidz.jobs.catalog import ALIASES, CATALOG, JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields
from ourvidz.jobs.ranges import Range

PAYLOAD = "docs/reference/payload.md"
NONE = "–"

OpenPage = Callable[[str], Any]


def row_of(job_type: JobType) -> list[str]:
    """Return a row of the catalog as the table writes it."""
    low, high = job_type.expected_s
    numbers = (job_type.steps, job_type.guidance_scale, job_type.frames)
    return [
        job_type.queue,
        *(NONE if value is None else str(value) for value in numbers),
        job_type.output,
        ", ".join(map(str, job_type.num_images)),
        "yes" if job_type.enhance else "no",
        f"{high:g}" if low == high else f"{low:g}–{high:g}",
        f"{job_type.time_limit_s:g}",
    ]


def test_the_catalog_table_is_the_catalog(page: OpenPage) -> None:
    """The table has the defaults of each job type."""
    documented = {row[0].strip("`"): row[1:] for row in page(PAYLOAD).rows("type", "queue", "steps")}
    assert documented == {name: row_of(job_type) for name, job_type in CATALOG.items()}
    aliases = page(PAYLOAD).rows("alias", "means")
    assert {row[0].strip("`"): row[1].strip("`") for row in aliases} == ALIASES


class RecordingFields(Fields):
    """Records the paths of a payload that are read, their order and their ranges."""

    read_paths: dict[tuple[str, ...], set[str]]

    def first(self, *paths: str) -> Any:
        self.read_paths.setdefault(paths, set())
        return super().first(*paths)

    def number(self, *paths: str, within: Range) -> float | None:
        self.read_paths.setdefault(paths, set()).add(within.rule)
        return super().number(*paths, within=within)


def test_the_payload_tables_have_every_path_and_range_that_is_read(
    page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables have each path that the parser reads for any job type, in its order, with its range."""
    RecordingFields.read_paths = {}
    monkeypatch.setattr(dialects, "Fields", RecordingFields)
    for name in CATALOG:
        payload = {"id": "one", "type": name, "user_id": "me", "prompt": "a hill"}
        dialects.parse(payload, Defaults(loras={"hills": 1.0}))

    documented: dict[tuple[str, ...], str] = {}
    for row in page(PAYLOAD).rows("field", "written as"):
        paths = tuple(re.findall(r"`([^`]+)`", row[1]))
        documented[paths] = f"{documented.get(paths, '')} {row[2]}"
    assert set(documented) == set(RecordingFields.read_paths)
    missing = {
        paths: rules - {rule for rule in rules if rule in documented[paths]}
        for paths, rules in RecordingFields.read_paths.items()
    }
    assert {paths: rules for paths, rules in missing.items() if rules} == {}
