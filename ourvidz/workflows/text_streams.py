"""Streaming the new text of several running attempts in one round trip to the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from ourvidz import log
from ourvidz.errors import WorkerUnavailable
from ourvidz.ledger.store import Ledger
from ourvidz.records.calls import Report
from ourvidz.records.record import Verdict
from ourvidz.workflows.batch_texts import StreamPart
from ourvidz.workflows.run import LeasedRun

_log = log.get(__name__)


def stream_texts(parts: Sequence[tuple[LeasedRun, StreamPart]], ledger: Ledger) -> list[bool | Exception]:
    """Append new text to the streams of several running jobs, and report their progress; see `JobSource`."""
    reports = [run.text_report(part.text, part.tokens, part.max_tokens) for run, part in parts]
    answers = _send(reports, ledger)
    results: list[bool | Exception] = []
    for (run, _), report, answer in zip(parts, reports, answers, strict=True):
        if isinstance(answer, Exception):
            results.append(answer)
            continue
        run.note_report(report, answer)
        try:
            results.append(run.after_text(answer))
        except Exception as error:  # noqa: BLE001  the caller ends this attempt with it, and no other
            # Without its frames, which refer to these results.
            results.append(error.with_traceback(None))
    return results


def _send(reports: Sequence[Report], ledger: Ledger) -> Sequence[Verdict | Exception | None]:
    """The ledger's verdicts; None for all where it cannot be reached, an exception for a job of which it
    cannot read what is stored."""
    try:
        return ledger.steps(reports)
    except WorkerUnavailable:
        _log.warning("ledger_away", job_id=reports[0].claim.job_id, jobs=len(reports))
        return [None] * len(reports)
    except Exception as error:  # noqa: BLE001
        if len(reports) == 1:
            return [error]
        # Sent again, those that were recorded change nothing.
        return [answer for report in reports for answer in _send([report], ledger)]
