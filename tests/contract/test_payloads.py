"""The sample requests of every generation of callers."""

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


def facts_of(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json") | {name: getattr(job, name, None) for name in DERIVED}


def sample(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


ACCEPTED = [path for path in SAMPLES if "job" in sample(path)["expect"]]
REFUSED = [path for path in SAMPLES if "error" in sample(path)["expect"]]


def test_every_sample_says_what_it_expects() -> None:
    """A sample that is in neither list would be tested by nobody."""
    assert len(ACCEPTED) >= 14
    assert len(REFUSED) >= 16
    assert sorted(ACCEPTED + REFUSED) == SAMPLES


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_a_sample_becomes_the_job_it_describes(path: Path) -> None:
    """Callers in the field keep sending what they send today."""
    document = sample(path)
    job = facts_of(parse(document["payload"], Defaults()))
    expected = document["expect"]["job"]
    assert {name: job[name] for name in expected} == expected


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_bad_sample_is_refused_by_name(path: Path) -> None:
    """A caller mends a request only when the error names the field it wrote."""
    document = sample(path)
    with pytest.raises(CallerError) as refused:
        parse(document["payload"], Defaults())
    expected = document["expect"]["error"]
    assert refused.value.code == expected["code"]
    assert refused.value.http_status == document["expect"]["status"]
    if expected["field"] is None:
        assert refused.value.field is None
    else:
        assert expected["field"] in (refused.value.field or "")
