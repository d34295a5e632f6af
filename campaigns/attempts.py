"""Attempts as processes that load nothing: forked from one that has loaded the models of both families.

    python -m campaigns.attempts FOLDER REDIS_URL

Reads requests from standard input, a JSON object a line: `job` (an id in the ledger) and `interval_s` (0
saves no checkpoints). Each is run by a forked process. Writes what happens, a line for each event:

    pid NUMBER              the attempt's process
    step DONE TOTAL TIME    a step is reported; at monotonic TIME
    copied TIME             the state is copied
    saved TIME              it is in the storage
    exit STATUS             the process has ended; negative: by a signal
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.references.resolve import ResolvedReference
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.models import WarmModels
from ourvidz.workflows.checkpoints import JobCheckpoints
from ourvidz.workflows.image import generate_images
from ourvidz.workflows.run import LeasedRun
from ourvidz.workflows.services import Services
from ourvidz.workflows.video import generate_video
from training.untrained import sdxl, wan

LEASE_S = 600.0
LIMIT_S = 600.0
STORAGE = "assets"


class StillLife:
    """The reference of every job: one picture."""

    def resolve(self, reference: str, *, user_id: str | None) -> ResolvedReference:  # noqa: ARG002
        """A gradient from black to white."""
        return ResolvedReference(Image.linear_gradient("L").convert("RGB"))


class ReportedRun(LeasedRun):
    """A run that writes its steps to standard output."""

    def step(self, done: int, total: int) -> None:
        """Report the step, then write it."""
        super().step(done, total)
        report("step", done, total, time.monotonic())


class ReportedCheckpoints(JobCheckpoints):
    """Checkpoints that write to standard output when they are copied and saved."""

    def save(self, encode: Callable[[], bytes]) -> None:
        """The state was copied when this is called."""
        report("copied", time.monotonic())
        super().save(encode)

    def _write(self, encode: Callable[[], bytes]) -> bool:
        stored = super()._write(encode)
        report("saved", time.monotonic())
        return stored


def report(*words: object) -> None:
    """Write a line at once: a killed process loses nothing that it has reported."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def load_models(folder: Path) -> WarmModels:
    """Untrained models of both families, loaded, on one thread: a process with more cannot be forked."""
    torch.set_num_threads(1)
    for build, name in ((sdxl.build, "sdxl"), (wan.build, "wan")):
        if not (folder / name).exists():
            build(folder / name)
    options = SDXLOptions(scheduler="euler_a", previews=False)
    models = WarmModels(
        SDXLPipeline(Checkpoint(folder / "sdxl", "tiny"), cap=128, options=options),
        wan=WanPipeline(Checkpoint(folder / "wan", "tiny"), cap=128),
    )
    models.warm()
    return models


def run_attempt(models: WarmModels, folder: Path, redis_url: str, job_id: str, interval_s: float) -> None:
    """Claim a job, run it and commit its outcome."""
    ledger, store = Ledger(redis_url), LocalStore(folder / STORAGE)
    services = Services(models=models, store=store, gate=Gate(load_terms()), references=StillLife())
    claim = ledger.claim(job_id, 1, worker_id="attempts", lease_s=LEASE_S, token=uuid.uuid4().hex)
    if claim is None:
        raise LookupError(f"{job_id} cannot be claimed")
    checkpoints = ReportedCheckpoints(claim, store, interval_s=interval_s) if interval_s else None
    with ReportedRun(claim, ledger, lease_s=LEASE_S, limit_s=LIMIT_S, checkpoints=checkpoints) as run:
        job: Any = claim.job
        if isinstance(job, VideoJob):
            outcome = generate_video(job, run, services)
        else:
            assert isinstance(job, ImageJob)
            outcome = generate_images(job, run, services)
        run.publish(outcome)
        emptied = run.emptied_folders()
        if not ledger.end(claim, outcome=outcome, emptied_folders=emptied):
            raise LookupError(f"{job_id} cannot be committed")
        run.note_commit(emptied)


def main(folder: Path, redis_url: str) -> None:
    """Serve requests until standard input ends."""
    models = load_models(folder)
    report("ready")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                report("pid", os.getpid())
                run_attempt(models, folder, redis_url, request["job"], request["interval_s"])
                status = 0
            except BaseException:  # noqa: BLE001  the fork must end here, whatever happened
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        report("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
