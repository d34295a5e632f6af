"""LitServe, one worker process on the CPU."""

from __future__ import annotations

import os
import time

import litserve


class Noop(litserve.LitAPI):
    """An API whose prediction is the time at which it ran."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def decode_request(self, request):
        """The request as it is. Without annotations: LitServe derives the form of the request from them."""
        return request

    def predict(self, _):
        """The time."""
        return time.time()

    def encode_response(self, output):
        """The answer."""
        return {"started": output}


if __name__ == "__main__":
    server = litserve.LitServer(Noop(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        generate_client_file=False,
        log_level="error",
        num_api_servers=1,
    )
