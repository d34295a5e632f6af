"""Outcomes in the ledger's JSON: records that an older version wrote must still be read."""

from __future__ import annotations

import json

from ourvidz.errors import Cancelled, InvalidParameters
from ourvidz.jobs.outcome import JobError, Outcome

STORED = """{"status":"failed","metadata":{"vram_used":812},"fault":{"code":"INVALID_PARAMETERS",
"message":"Too many steps.","retryable":false,"field":"config.steps","kind":null}}"""
ERROR = JobError(
    code="INVALID_PARAMETERS", message="Too many steps.", retryable=False, field="config.steps", kind=None
)


def test_a_stored_outcome_is_read_and_written_with_its_old_key() -> None:
    """The attribute is `error`, the stored key `fault`: workers of two versions share one Redis."""
    outcome = Outcome.model_validate_json(STORED)
    assert outcome == Outcome(status="failed", metadata={"vram_used": 812}, error=ERROR)
    written = json.loads(outcome.model_dump_json(exclude_defaults=True))
    assert written["fault"]["code"] == "INVALID_PARAMETERS"
    assert "error" not in written
    assert Outcome.model_validate(written) == outcome


def test_the_public_form_of_an_error_has_no_field_of_the_request() -> None:
    """The receiver of a callback may differ from the sender of the request."""
    error = InvalidParameters("Too many steps.", field="config.steps", rule="at most 100", value=500)
    outcome = Outcome.failure(error)
    assert outcome.error == ERROR
    assert outcome.error.to_public() == {
        "code": "INVALID_PARAMETERS",
        "message": "Too many steps.",
        "retryable": False,
    }


def test_a_cancelled_job_has_an_outcome_of_its_own() -> None:
    """Lists show it as cancelled, though its callback says failed."""
    assert Outcome.failure(Cancelled("no more")).status == "cancelled"
