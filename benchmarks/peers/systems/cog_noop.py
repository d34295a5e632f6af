"""A cog predictor, served by cog's own HTTP server."""

from __future__ import annotations

import time

from cog import BasePredictor


class Predictor(BasePredictor):
    """A predictor whose output is the time at which it ran."""

    def predict(self) -> float:
        """The time."""
        return time.time()
