"""How much memory jobs needed beside the weights, learned from measurements and kept over restarts."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ourvidz import log

UNKNOWN_SHARE = 0.25
"""Until a kind of job was measured, it is taken to need this part of the weights."""
MARGIN = 1.1
"""What was measured is multiplied by this: fragmentation differs from run to run."""

_log = log.get(__name__)


class Footprints:
    """The largest working memory of each kind of job (MiB), in a JSON file that the processes of a host share
    and each rewrites whole. A file that cannot be read or written costs nothing but what it knew."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._learned = _read(file)

    def work_mib(self, kind: str, weights_mib: int, *, at_most: int | None = None) -> int:
        """The working memory that a job of this kind is expected to need, at least 1. `at_most` is what the
        device can give: a guess is not above it, because no job is refused for a guess."""
        learned = self.learned_mib(kind)
        if learned is not None:
            return learned
        guess = round(weights_mib * UNKNOWN_SHARE)
        return max(1, guess if at_most is None else min(guess, at_most))

    def learned_mib(self, kind: str) -> int | None:
        """The working memory of a kind of job as it was measured, with the margin; None if unknown."""
        learned = self._learned.get(kind)
        return None if learned is None else max(1, round(learned * MARGIN))

    def learn(self, kind: str, mib: int, *, at_most: int | None = None) -> None:
        """Note a measurement; the largest one counts. `at_most` is what the device can give: what is learned
        is not more, margin and all."""
        if at_most is not None:
            mib = min(mib, int(at_most / MARGIN))
        if mib <= self._learned.get(kind, 0):
            return
        # What other processes have learned meanwhile is kept.
        self._learned = {**self._learned, **_read(self._file), kind: mib}
        try:
            _write(self._file, self._learned)
        except OSError as error:
            _log.warning("footprint_not_kept", file=str(self._file), reason=str(error))


def kind_of(family: str, *, pixels: int, count: int) -> str:
    """The kind of a job: family, and pixels of one picture times pictures or frames, up to the next power of
    two, so that alike jobs share one measurement."""
    return f"{family}:{max(0, pixels * count - 1).bit_length()}"


def _read(file: Path) -> dict[str, int]:
    try:
        learned = json.loads(file.read_text(encoding="utf-8"))
        return {str(kind): int(mib) for kind, mib in learned.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        _log.warning("footprints_unreadable", file=str(file), reason=str(error))
        return {}


def _write(file: Path, learned: dict[str, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as temporary:
        json.dump(learned, temporary)
    Path(name).replace(file)
