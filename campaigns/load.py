"""Callers that submit image jobs and repeat what was not accepted; what became of their files."""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from PIL import Image

from campaigns.installation import POLL_S
from ourvidz.records.record import Record

CLIENTS = 4
"""Threads that submit jobs at the same time."""
SUBMIT_S = 120.0
"""How long a caller repeats a submission."""
CANCELLED = 0.04
"""Share of the jobs that their caller cancels."""


class Load:
    """Callers of one shim, a few jobs for each event of a campaign.

    `accepted`: the ids of the jobs whose submission was answered with success. `answers` counts every other
    answer by its status, connection errors as `none`; `unexpected` those that tell of a defect.
    """

    def __init__(
        self, shim: str, *, jobs: int, events: int, seed: int, headers: Mapping[str, str] | None = None
    ) -> None:
        self.accepted: list[str] = []
        self.answers: Counter[str] = Counter()
        self._shim = shim
        self._headers = dict(headers or {})
        self._random = random.Random(seed)
        self._allowed = threading.Semaphore(0)
        self._per_event = max(1, round(jobs / events))
        self._names = [f"job-{seed}-{number}" for number in range(jobs)]
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._submissions = [self._pool.submit(self._submit, name) for name in self._names]

    @property
    def unexpected(self) -> dict[str, int]:
        """Answers that no fault explains."""
        explained = ("502", "503", "504", "none")
        return {status: count for status, count in self.answers.items() if status not in explained}

    def allow(self) -> None:
        """Let the callers submit the jobs of one more event."""
        self._allowed.release(self._per_event)

    def finish(self) -> None:
        """Let the callers submit the rest, and wait until everything was accepted."""
        self._allowed.release(len(self._names))
        for submission in self._submissions:
            submission.result()
        self._pool.shutdown()

    def _submit(self, name: str) -> None:
        self._allowed.acquire()
        steps = self._random.choice((1, 5, 20))
        config = {"width": 64, "height": 64, "steps": steps, "seed": self._random.randrange(2**31)}
        kind = {"id": name, "type": "sdxl_image_fast", "user_id": "campaign", "config": config}
        self._repeat("/jobs", kind | {"prompt": "a red hill under a blue sky"}, accept=(200, 202))
        self.accepted.append(name)
        if self._random.random() < CANCELLED:
            # 404: a failover has lost it. 409: it has ended already.
            self._repeat(f"/jobs/{name}/cancel", None, accept=(200, 202, 404, 409))

    def _repeat(self, path: str, document: Any, *, accept: tuple[int, ...]) -> None:
        deadline = time.monotonic() + SUBMIT_S
        while True:
            try:
                answer = requests.post(self._shim + path, json=document, headers=self._headers, timeout=15)
                if answer.status_code in accept:
                    return
                if answer.status_code < 500:
                    raise AssertionError(f"{path} answered {answer.status_code}: {answer.text}")
                self.answers[str(answer.status_code)] += 1
            except requests.RequestException as error:
                self.answers["none"] += 1
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} was not accepted within {SUBMIT_S:g} s") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not accepted within {SUBMIT_S:g} s")
            time.sleep(POLL_S)


def unreadable_images(read: Callable[[str], bytes], record: Record) -> int:
    """The number of images of a completed job that cannot be read. `read` raises `OSError` without a file."""
    missing = 0
    for asset in record.outcome.assets if record.status == "completed" and record.outcome else ():
        for key in (asset.key, asset.thumbnail_key):
            try:
                with Image.open(io.BytesIO(read(str(key)))) as image:
                    image.load()
            except OSError:
                missing += 1
    return missing
