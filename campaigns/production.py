"""An installation as in production, here: is it ready, also when a worker dies and another one is deployed?

    python -m campaigns.production [--storage s3|supabase|all] [--json]

Profile `production` with the tiny checkpoints: Redis behind a sentinel, keys, files on a server (with the API
of S3, or of Supabase), the receiver of `deploy/receiver` under Deno, and the units of `deploy/systemd` on two
hosts, all on this machine. `ourvidz rehearse` must pass for all types. Then jobs are submitted; the worker
that runs one is killed in the middle of it, another one is restarted by a deploy. Every job must complete,
the receiver must accept the callback of each once, and the files must be readable at signed URLs. Exits with
1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from campaigns.installation import wait_until
from campaigns.production_stack import WORKERS, ProductionStack
from campaigns.storages import RemoteFiles, S3Files, SupabaseFiles
from ourvidz.cli.console import print_note
from ourvidz.cli.rehearsed_files import StepFailed, check_files
from ourvidz.cli.shim import ShimError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.records.record import Record

STORAGES: dict[str, Callable[[Path], RemoteFiles]] = {"s3": S3Files, "supabase": SupabaseFiles}
USER = "campaign"
LONG_IMAGE = {"steps": 100, "num_images": 6, "width": 128, "height": 128}
LONG_CLIP = {"steps": 100, "frames": 81, "size": "64*64"}
"""Jobs that can be met in the middle."""
SMALL: dict[str, dict[str, object]] = {
    "video_fast": {"steps": 4, "frames": 5, "size": "64*64"},
    "image7b_fast_enhanced": {"steps": 4, "size": "64*64"},
    "chat_conversation": {},
}
ENDED_S = 240.0
STARTED_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the table."""

    storage: str
    step: str
    ok: bool
    reason: str


class Production:
    """The steps on one installation."""

    def __init__(self, stack: ProductionStack, storage: str) -> None:
        self.steps: list[Step] = []
        self._stack = stack
        self._storage = storage
        self._jobs: dict[str, str] = {}

    def run(self) -> list[Step]:
        """Rehearse, break, and inspect; returns a line for each step."""
        self.rehearse()
        self.break_workers()
        for job_id in self._jobs:
            self.wait_for(job_id, lambda record: record.finished, within_s=ENDED_S)
        self.inspect()
        return self.steps

    def rehearse(self) -> None:
        """Run `ourvidz rehearse` as an operator does."""
        ran = self._stack.run_command("rehearse", "--json")
        if not ran.stdout:
            self.add("rehearsal", False, ran.stderr[-500:])
            return
        document = json.loads(ran.stdout)
        for step in document["steps"]:
            self.add(f"rehearse {step['name']}", step["status"] == "ok", f"{step['reason']} {step['fix']}")
        self.add("rehearse exit status", ran.returncode == 0, str(ran.returncode))
        accepted = [job_id for job_id, status in self._stack.receiver.accepted if status == "completed"]
        rehearsed = [job_id for job_id in accepted if job_id.startswith("rehearsal-")]
        self.add("rehearsed callbacks", len(rehearsed) == len(CATALOG) + 1, f"{len(rehearsed)} were accepted")
        left = self._stack.storage.keys_of_jobs()
        self.add("files after the rehearsal", not left, f"{len(left)} files" if left else "none")

    def break_workers(self) -> None:
        """Kill a worker in the middle of its job, and deploy another one in the middle of its job."""
        self.submit("killed", "sdxl_image_high", **LONG_IMAGE)
        record = self.wait_for("killed", lambda record: record.progress > 0, within_s=STARTED_S)
        killed = self.unit_of(record)
        self._stack.kill(killed)
        self.add("kill", True, f"{killed} at {record.progress:.0f} %")
        for number in range(4):
            self.submit(f"beside-{number}", "sdxl_image_fast", width=64, height=64)
        self._stack.start(killed)
        self.submit("deployed", "video_high", **LONG_CLIP)
        record = self.wait_for("deployed", lambda record: record.progress > 0, within_s=STARTED_S)
        deployed = self.unit_of(record)
        had_to_kill = self._stack.deploy(deployed)
        self.add("deploy", not had_to_kill, f"{deployed} at {record.progress:.0f} %")
        for name in (killed, deployed):
            self._stack.wait_until_ready(name)
        for number, (type_name, config) in enumerate(SMALL.items()):
            self.submit(f"after-{number}", type_name, **config)

    def inspect(self) -> None:
        """Whether every job completed, with its files and one callback."""
        accepted = self._stack.receiver.accepted
        for job_id, type_name in self._jobs.items():
            state = self._stack.shim.job(job_id)
            name = f"{job_id} ({type_name})"
            if state["status"] != "completed":
                self.add(name, False, f"{state['status']}: {state['error']}")
                continue
            try:
                files = self.check(type_name, state["result"])
            except (StepFailed, ShimError) as failure:
                self.add(name, False, str(failure))
                continue
            try:
                wait_until(partial(accepted.get, (job_id, "completed")), within_s=60, what="its callback")
            except TimeoutError:
                self.add(name, False, "the receiver accepted no callback")
                continue
            times = accepted[job_id, "completed"] + accepted[job_id, "failed"]
            reason = f"attempt {state['attempt']}; {files}; {times} terminal callback accepted"
            self.add(name, times == 1, reason)
        workers = {worker.id for worker in self._stack.ledger.online_workers() if worker.family in _FAMILIES}
        self.add("workers", len(workers) == len(WORKERS), ", ".join(sorted(workers)))

    def check(self, type_name: str, result: dict[str, Any]) -> str:
        """Read the files of a job; returns a summary. Of several, all are read through redirects to signed
        URLs. Raises `StepFailed` or `ShimError`."""
        assets = result["assets"]
        if len(assets) == 1:
            return check_files(self._stack.shim, CATALOG[type_name], result)
        for asset in assets:
            self._stack.shim.fetch(f"/assets/{asset['url']}")
        return f"{len(assets)} files read"

    def submit(self, job_id: str, type_name: str, **config: object) -> None:
        """Submit a job over HTTP."""
        payload = {
            "id": job_id,
            "type": type_name,
            "user_id": USER,
            "prompt": "a white circle over green hills",
            "config": {"seed": 7, **config},
        }
        self._stack.shim.post("/jobs", payload)
        self._jobs[job_id] = type_name

    def wait_for(self, job_id: str, reached: Callable[[Record], bool], *, within_s: float) -> Record:
        """Wait until the record of a job fulfils a condition; returns it."""

        def read() -> Record | None:
            record = self._stack.ledger.get(job_id)
            return record if record is not None and reached(record) else None

        record: Record = wait_until(read, within_s=within_s, what=f"the job {job_id}")
        return record

    def unit_of(self, record: Record) -> str:
        """The unit whose worker runs a job."""
        for name in WORKERS:
            worker = self._stack.worker(name)
            if worker is not None and worker.id == record.worker_id:
                return name
        raise LookupError(f"no unit runs {record.job_id}: {record.worker_id}")

    def add(self, step: str, success: bool, reason: str) -> None:
        """Add a line to the table."""
        self.steps.append(Step(self._storage, step, success, reason.strip()))
        print_note(f"{self._storage}: {step}: {'ok' if success else 'FAILED'}: {reason.strip()}")


_FAMILIES = frozenset(family for family, _ in WORKERS.values())


def run(storage: str) -> list[Step]:
    """Run all steps with one storage."""
    began_at = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-production-") as folder,
        STORAGES[storage](Path(folder)) as files,
        ProductionStack(Path(folder), files) as stack,
    ):
        print_note(f"{storage}: everything runs after {time.monotonic() - began_at:.0f} s")
        return Production(stack, storage).run()


def main() -> None:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", choices=[*STORAGES, "all"], default="all")
    parser.add_argument("--json", action="store_true", help="print the steps as one JSON document")
    arguments = parser.parse_args()
    names = list(STORAGES) if arguments.storage == "all" else [arguments.storage]
    steps = [step for name in names for step in run(name)]
    if arguments.json:
        print(json.dumps([asdict(step) for step in steps]))
    else:
        for step in steps:
            print(f"{step.storage:10}{step.step:36}{'ok' if step.ok else 'FAILED':8}{step.reason}")
    sys.exit(0 if all(step.ok for step in steps) else 1)


if __name__ == "__main__":
    main()
