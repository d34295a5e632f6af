"""Documents that are read leave nothing behind: a process reads millions of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.jobs.job import dump_job, load_job
from ourvidz.jobs.outcome import Asset, Outcome
from tests.factories import image_job

COUNT = 300


def job_document(number: int) -> str:
    return dump_job(image_job(f"job-{number}", prompt=f"hill number {number}"))


def outcome_document(number: int) -> str:
    asset = Asset(type="image", key=f"workspace-temp/user/job-{number}/0.png")
    return Outcome(status="completed", assets=(asset,), metadata={"a": f"{number}"}).model_dump_json()


@pytest.mark.parametrize(
    ("write", "read"),
    [(job_document, load_job), (outcome_document, Outcome.model_validate_json)],
    ids=["job", "outcome"],
)
def test_reading_documents_keeps_none_of_their_values(
    write: Callable[[int], str], read: Callable[[str], Any]
) -> None:
    """A cache of strings grew by 80 bytes for each of them, up to two megabytes in every process."""
    documents = [write(number) for number in range(COUNT)]
    read(documents[0])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for document in documents:
            read(document)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 10 * COUNT
