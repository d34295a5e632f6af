"""The safety gate: the one rule that no setting switches off, nothing sexual about minors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from ourvidz import log
from ourvidz.errors import PolicyViolation
from ourvidz.jobs.job import BaseJob
from ourvidz.prompts.encoder_texts import continued_texts, encoder_texts
from ourvidz.safety.ages import number_words, states_minor_age
from ourvidz.safety.matching import TermMatcher
from ourvidz.safety.normalise import fold
from ourvidz.safety.readings import I_OR_L, Readings, read
from ourvidz.safety.term_lists import Terms, load_terms

__all__ = ["Gate", "Terms", "load_terms"]

MESSAGE = "This request cannot be processed."
CATEGORY = "minors"
KEPT_VERDICTS = 4096
"""Most verdicts that are kept, two for each text."""

_log = log.get(__name__)


class Gate:
    """Checks all texts of one job together: a term of each kind, anywhere in them, is a violation.

    Negative prompts, system prompts and generated text count like any other text, and so do the texts that
    encoders read in place of them. Terms are matched without their context, so the gate errs on the side of
    refusing; see docs/decisions/0006-safety-gate.md and 0047-the-gate-judges-what-is-encoded.md.
    """

    def __init__(self, terms: Terms) -> None:
        self._minor = _matcher(terms.minor)
        self._sexual = _matcher(terms.sexual)
        self._verdicts: dict[tuple[str, bytes], bool] = {}

    def check(self, texts: Iterable[str], *, derived: Iterable[str] = ()) -> None:
        """Raise `PolicyViolation` if the texts break the rule, together with what was `derived` from them.
        The error names no rule, no term and no field."""
        sent = tuple(dict.fromkeys(texts))
        distinct = [_Text(text) for text in dict.fromkeys((*sent, *derived))]
        if any(map(self._is_sexual, distinct)) and any(map(self._is_about_minors, distinct)):
            raise _violation(sent)

    def check_job(self, job: BaseJob, *added: str) -> None:
        """Check the texts of a job together with texts that were generated for it or derived from it. Raises
        `PolicyViolation`.

        A violation is logged with job, user and category, without any of the text.
        """
        derived = [*encoder_texts(job), *(text for each in added for text in continued_texts(job, each))]
        try:
            self.check(added, derived=derived)
        except PolicyViolation as violation:
            violation.audit = _audit((*job.texts(), *added))
            _log.warning("policy_violation", job_id=job.id, user_id=job.user_id, **violation.audit)
            raise

    def _is_sexual(self, text: _Text) -> bool:
        return self._verdict("sexual", text, lambda: self._sexual.matches(text.readings))

    def _is_about_minors(self, text: _Text) -> bool:
        return self._verdict(
            "minor", text, lambda: self._minor.matches(text.readings) or _states_minor_age(text.readings)
        )

    def _verdict(self, kind: str, text: _Text, judge: Callable[[], bool]) -> bool:
        """The verdict on a text. It is kept under the hash of the text: the texts of a conversation are
        judged again with every part of the answer."""
        key = kind, text.digest
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= KEPT_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[key] = judge()
        return verdict


class _Text:
    """A text that is judged; it is read when that is first needed."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def readings(self) -> Readings:
        return read(self._text)

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self._text.encode("utf-8", "surrogatepass")).digest()


def _states_minor_age(readings: Readings) -> bool:
    if any(map(states_minor_age, readings.folded)):
        return True
    disguised = (word.replace(I_OR_L, "i") for word in readings.disguised if len(word) > 2)
    if number_words().isdisjoint(disguised):
        return False
    return any(map(states_minor_age, readings.spelled_numbers))


@lru_cache(maxsize=16)
def _matcher(terms: frozenset[str]) -> TermMatcher:
    """The compiled form of a list of terms, made once for each list."""
    return TermMatcher(terms)


def _violation(texts: Iterable[str]) -> PolicyViolation:
    """Build the error of refused texts, with their hash for the audit log; the caller raises it."""
    violation = PolicyViolation(MESSAGE)
    violation.audit = _audit(texts)
    return violation


def _audit(texts: Iterable[str]) -> dict[str, str]:
    """The category, and the hash of the normalised texts."""
    normalised = "\n".join(map(fold, texts))
    return {
        "category": CATEGORY,
        "text_sha256": hashlib.sha256(normalised.encode("utf-8", "replace")).hexdigest(),
    }
