"""The one rule that no setting turns off: nothing sexual about minors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ourvidz import log
from ourvidz.errors import PolicyViolation
from ourvidz.jobs.job import BaseJob
from ourvidz.safety.ages import states_minor_age
from ourvidz.safety.lists import Matcher, Terms, load_terms
from ourvidz.safety.normalise import Readings, fold, read

__all__ = ["Gate", "Terms", "load_terms"]

MESSAGE = "This request cannot be processed."
CATEGORY = "minors"

_log = log.get(__name__)


class Gate:
    """Judges all texts of one job together: a signal of each kind anywhere in them is a hit.

    Negative prompts, system prompts and generated text count like any other text. Terms make no sense
    of what is said, so the gate errs on the side of refusing; docs/decisions/0006-safety-gate.md.
    """

    def __init__(self, terms: Terms) -> None:
        self._minor = Matcher(terms.minor)
        self._sexual = Matcher(terms.sexual)

    def check(self, texts: Iterable[str]) -> None:
        """Raise `PolicyViolation` for a hit. The error names no rule, no term and no field."""
        whole = tuple(texts)
        readings = [read(text) for text in whole]
        if any(map(self._sexual.found_in, readings)) and any(map(self._is_about_minors, readings)):
            raise _violation(whole)

    def judge(self, job: BaseJob, made: str = "") -> None:
        """Check everything a person wrote into a job, together with a text that was `made` for it. A hit
        leaves one line for the audit: who and what kind, never a word of the text."""
        try:
            self.check((*job.texts(), made))
        except PolicyViolation as violation:
            _log.warning("policy_violation", job_id=job.id, user_id=job.user_id, **(violation.audit or {}))
            raise

    def _is_about_minors(self, readings: Readings) -> bool:
        return self._minor.found_in(readings) or any(map(states_minor_age, readings.words))


def _violation(texts: tuple[str, ...]) -> PolicyViolation:
    normalised = "\n".join(map(fold, texts))
    violation = PolicyViolation(MESSAGE)
    violation.audit = {
        "category": CATEGORY,
        "text_sha256": hashlib.sha256(normalised.encode("utf-8", "replace")).hexdigest(),
    }
    return violation
