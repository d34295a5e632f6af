"""Versions of job documents: releases side by side read what they know and leave the rest alone."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest

from ourvidz.errors import NewerRelease
from ourvidz.jobs.job import JOB_VERSION, ImageJob, dump_job, load_job
from ourvidz.jobs.versions import Since


class LaterJob(ImageJob):
    """An image job of a later release."""

    tint: Annotated[str | None, Since(JOB_VERSION + 1)] = None


def test_a_document_without_later_fields_is_one_of_the_first_version(image: Any) -> None:
    """An older worker runs every job that uses nothing new."""
    job = image()
    later = LaterJob(**job.model_dump())
    assert dump_job(later) == dump_job(job)
    assert later.fingerprint() == job.fingerprint()
    assert load_job(dump_job(later)).version == 1


def test_a_document_with_a_later_field_has_its_version(image: Any) -> None:
    """An older worker must not run a job without what its caller asked for."""
    later = LaterJob(**image().model_dump(), tint="blue")
    assert json.loads(dump_job(later))["tint"] == "blue"
    assert later.fingerprint() != image().fingerprint()
    with pytest.raises(NewerRelease, match=f"version {JOB_VERSION + 1}"):
        load_job(dump_job(later))


def test_unknown_fields_of_a_document_are_ignored(image: Any) -> None:
    """The version says whether a release must know them."""
    document = json.loads(dump_job(image(config={"steps": 3})))
    document["unknown"] = {"a": [1]}
    assert dump_job(load_job(json.dumps(document))) == dump_job(image(config={"steps": 3}))


def test_a_document_that_only_a_newer_release_can_parse_is_recognised(image: Any) -> None:
    """Its fields may have other types: the version counts, not the errors."""
    document = json.loads(dump_job(image())) | {"version": 7, "steps": {"low": 1, "high": 5}}
    with pytest.raises(NewerRelease, match="version 7"):
        load_job(json.dumps(document))


def test_a_document_begins_with_its_version(image: Any, video: Any, chat: Any) -> None:
    """The ledger's scripts read it there before they let a worker claim the job."""
    for job in (image(), video(), chat(prompt="hello")):
        assert dump_job(job).startswith('{"version":1,')
