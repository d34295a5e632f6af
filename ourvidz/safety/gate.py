"""The safety gate: the one rule that no setting switches off, nothing sexual about minors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ourvidz import log
from ourvidz.errors import PolicyViolation
from ourvidz.jobs.job import BaseJob
from ourvidz.safety.ages import states_minor_age
from ourvidz.safety.normalise import TextVariants, fold, text_variants
from ourvidz.safety.term_lists import TermMatcher, Terms, load_terms

__all__ = ["Gate", "Terms", "load_terms"]

MESSAGE = "This request cannot be processed."
CATEGORY = "minors"

_log = log.get(__name__)


class Gate:
    """Checks all texts of one job together: a term of each kind, anywhere in them, is a violation.

    Negative prompts, system prompts and generated text count like any other text. Terms are matched without
    their context, so the gate errs on the side of refusing; see docs/decisions/0006-safety-gate.md.
    """

    def __init__(self, terms: Terms) -> None:
        self._minor = TermMatcher(terms.minor)
        self._sexual = TermMatcher(terms.sexual)

    def check(self, texts: Iterable[str]) -> None:
        """Raise `PolicyViolation` if the texts break the rule. The error names no rule, no term and no
        field."""
        all_texts = tuple(texts)
        variants = [text_variants(text) for text in all_texts]
        if any(map(self._sexual.matches, variants)) and any(map(self._is_about_minors, variants)):
            raise _violation(all_texts)

    def check_job(self, job: BaseJob, generated: str = "") -> None:
        """Check the texts of a job together with a text that was generated for it. Raises `PolicyViolation`.

        A violation is logged with job, user and category, without any of the text.
        """
        try:
            self.check((*job.texts(), generated))
        except PolicyViolation as violation:
            _log.warning("policy_violation", job_id=job.id, user_id=job.user_id, **(violation.audit or {}))
            raise

    def _is_about_minors(self, variants: TextVariants) -> bool:
        return self._minor.matches(variants) or any(map(states_minor_age, variants.words))


def _violation(texts: tuple[str, ...]) -> PolicyViolation:
    """Build the error of refused texts, with their hash for the audit log; the caller raises it."""
    normalised = "\n".join(map(fold, texts))
    violation = PolicyViolation(MESSAGE)
    violation.audit = {
        "category": CATEGORY,
        "text_sha256": hashlib.sha256(normalised.encode("utf-8", "replace")).hexdigest(),
    }
    return violation
