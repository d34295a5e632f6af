"""Publishes the messages of jobs a second time, from a process of its own.

`python -m campaigns.redelivery` reads ids of jobs from its standard input, one a line, and answers each with
a line: `published`, `unknown` or `failed`. The broker is a setting of a process, hence one of its own.
"""

from __future__ import annotations

import subprocess
import sys


class Redelivery:
    """The process, started at the first use."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def publish(self, job_ids: list[str]) -> None:
        """Publish the messages of these jobs, and wait until that is done."""
        if self._process is None:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "campaigns.redelivery"),
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for job_id in job_ids:
            self._process.stdin.write(f"{job_id}\n")
            if not self._process.stdout.readline():
                raise RuntimeError(f"the redelivery process ended with {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=30)


def main() -> None:
    """Publish what standard input names."""
    from ourvidz.dispatch import messages
    from ourvidz.errors import WorkerUnavailable
    from ourvidz.wiring import control

    for line in sys.stdin:
        try:
            record = control.current().ledger.get(line.strip())
            answer = "unknown" if record is None else "published" if messages.publish(record) else "failed"
        except WorkerUnavailable:
            answer = "failed"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
