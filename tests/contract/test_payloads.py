"""The sample requests of every generation of callers, parsed into jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import CallerError
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import Job

SAMPLES = sorted((Path(__file__).parent / "payloads").glob("*.json"))
DERIVED = ("queue", "mode", "effective_steps")


def fields_of(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json") | {name: getattr(job, name, None) for name in DERIVED}


def sample(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


ACCEPTED = [path for path in SAMPLES if "job" in sample(path)["expect"]]
REFUSED = [path for path in SAMPLES if "error" in sample(path)["expect"]]


def test_every_sample_expects_a_job_or_an_error() -> None:
    """A sample in neither list would not be tested."""
    assert len(ACCEPTED) >= 14
    assert len(REFUSED) >= 16
    assert sorted(ACCEPTED + REFUSED) == SAMPLES


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_a_sample_becomes_the_job_it_describes(path: Path) -> None:
    """Existing callers keep sending these requests."""
    document = sample(path)
    job = fields_of(parse(document["payload"], Defaults()))
    expected = document["expect"]["job"]
    assert {name: job[name] for name in expected} == expected


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_the_error_of_a_refused_sample_names_the_field(path: Path) -> None:
    """Under the name that the caller used."""
    document = sample(path)
    with pytest.raises(CallerError) as raised:
        parse(document["payload"], Defaults())
    expected = document["expect"]["error"]
    assert raised.value.code == expected["code"]
    assert raised.value.http_status == document["expect"]["status"]
    if expected["field"] is None:
        assert raised.value.field is None
    else:
        assert expected["field"] in (raised.value.field or "")
