"""Where a text ends before its time: at the first stop string, of which nothing is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Lets a growing text through, up to the first of `stops`.

    What may turn out to be the beginning of a stop string is kept back until it is known. After the end
    nothing comes through any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._kept = ""
        self.ended = False

    def show(self, more: str) -> str:
        """What can be shown now that the text has gone on by `more`."""
        if self.ended:
            return ""
        if not self._stops:
            return more
        text = self._kept + more
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.ended, self._kept = True, ""
            return text[: min(found)]
        sure = len(text) - self._open(text)
        self._kept = text[sure:]
        return text[:sure]

    def rest(self) -> str:
        """What was kept back of a text that has ended without a stop string."""
        kept, self._kept = self._kept, ""
        return kept

    def _open(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        longest = min(max(len(stop) for stop in self._stops) - 1, len(text))
        ends = (text[-length:] for length in range(longest, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self._stops)), 0)
