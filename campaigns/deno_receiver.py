"""The receiver of `deploy/receiver`, run under Deno, and what it has accepted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

from campaigns.releases import ROOT
from campaigns.resource import Resource
from campaigns.supabase import NotInstalled, find_deno
from ourvidz.subprocesses import dying_with_parent

RECEIVER = ROOT / "deploy" / "receiver" / "index.ts"
OPTIONS = ("--no-prompt", "--cached-only", "--allow-env", "--allow-net")
STOP_S = 10.0


class DenoReceiver(Resource):
    """The receiver on a free port of this machine, with these variables; use it as a context manager.

    `accepted` counts the callbacks that it has handled, by job and status: those whose signatures it has
    verified, each event once. Entering raises `NotInstalled` without Deno.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        super().__init__()
        self.accepted: Counter[tuple[str, str]] = Counter()
        self._folder = folder
        self._variables = variables

    @property
    def url(self) -> str:
        """Where callbacks are to be sent."""
        return f"http://127.0.0.1:{self.port}/functions/v1/job-callback"

    def _open(self) -> None:
        deno = find_deno()
        if deno is None:
            raise NotInstalled("Deno is not installed: run scripts/install-deno")
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "receiver.log").open("wb") as log:
            process = subprocess.Popen(
                [deno, "run", *OPTIONS, str(RECEIVER)],
                env={
                    "PATH": os.environ["PATH"],
                    "DENO_DIR": str(self._folder / "deno"),
                    "DENO_NO_UPDATE_CHECK": "1",
                    "NO_COLOR": "1",
                    "PORT": "0",
                    **self._variables,
                },
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )
        self._cleanup.callback(process.wait, STOP_S)
        self._cleanup.callback(process.terminate)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receiver ended with status {process.wait()}")
        self.port = int(json.loads(line)["listening"])
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def logs(self) -> list[Path]:
        """What it has written to standard error."""
        return [self._folder / "receiver.log"]

    def _read(self, lines: object) -> None:
        for line in lines:  # type: ignore[attr-defined]
            document = json.loads(line)
            if document.get("event") == "callback":
                self.accepted[document["job_id"], document["status"]] += 1
