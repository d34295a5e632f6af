"""Ends a text at the first stop string, of which nothing is shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Passes a growing text through, up to the first of `stops`.

    A suffix that may be the beginning of a stop string is held back until that is decided. After a stop
    string `stopped` is True and nothing is passed through any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held_back = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Add the next piece of the text, and return what can be shown now."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held_back + text
        matches = [index for index in (text.find(stop) for stop in self._stops) if index >= 0]
        if matches:
            self.stopped, self._held_back = True, ""
            return text[: min(matches)]
        end = len(text) - self._partial_match_length(text)
        self._held_back = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return what was held back, when the text has ended without a stop string."""
        text, self._held_back = self._held_back, ""
        return text

    def _partial_match_length(self, text: str) -> int:
        """The length of the longest suffix of `text` that is the beginning of a stop string."""
        longest = min(max(len(stop) for stop in self._stops) - 1, len(text))
        suffixes = (text[-length:] for length in range(longest, 0, -1))
        return next(
            (len(suffix) for suffix in suffixes if any(stop.startswith(suffix) for stop in self._stops)), 0
        )
