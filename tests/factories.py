"""Job factories and recording test doubles, each defined once: `from tests.factories import image_job`.

`image_job`, `video_job`, `chat_job` build small valid jobs; keyword arguments replace fields. `RecordingRun`
implements the workflows' `Run`, `RecordingItem` their `BatchItem`, `QueuedItems` their `JobSource`.
`STAND_IN_GATE` is a safety gate over two harmless terms. `ManualClock` is a clock that advances only when the
test advances it. `publishing_to` switches the broker.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ourvidz.app import app as celery_app
from ourvidz.errors import Cancelled
from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.net.client import RequestFailure
from ourvidz.net.fetch import Download
from ourvidz.pipelines.base import DenoisingCheckpoints, PreviewRenderer, Snapshot
from ourvidz.records.record import Worker
from ourvidz.references.resolve import ReferenceLimits, ReferenceResolver
from ourvidz.safety.gate import Gate, Terms
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.workflows.batch_texts import BatchItem, StreamPart
from ourvidz.workflows.services import Services

BEAT_MESSAGE = json.dumps(
    {
        "body": "[[], {}, {}]",
        "headers": {"task": "ourvidz.maintenance.sweep"},
        "properties": {"delivery_info": {"exchange": "ourvidz", "routing_key": "maintenance"}, "priority": 0},
    }
)
"""What the beat process of an earlier release put into the broker, every two seconds."""
STAND_IN_TERMS = Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"}))
"""Harmless terms in place of the real ones."""
STAND_IN_GATE = Gate(STAND_IN_TERMS)
"""Refuses texts that contain both words, and no other text."""
REFUSED_TEXT = "quokka marmalade"
"""A text that `STAND_IN_GATE` refuses."""


def image_job(job_id: str = "job-1", **changes: Any) -> ImageJob:
    """Build an SDXL job: 64x64 pixels, two steps."""
    fields: dict[str, Any] = {
        "id": job_id,
        "type": "sdxl_image_fast",
        "user_id": "user-1",
        "expected_time": 30,
        "prompt": "a red circle on a green field",
        "steps": 2,
        "guidance_scale": 6.0,
        "width": 64,
        "height": 64,
        "seed": 7,
    }
    return ImageJob(**(fields | changes))


def video_job(job_id: str = "job-1", **changes: Any) -> VideoJob:
    """Build a Wan job: five frames of 32x32 pixels, two steps."""
    fields: dict[str, Any] = {
        "id": job_id,
        "type": "video_fast",
        "user_id": "user-1",
        "expected_time": 180,
        "prompt": "a red circle on a green field",
        "steps": 2,
        "guidance_scale": 6.5,
        "width": 32,
        "height": 32,
        "frames": 5,
        "seed": 7,
    }
    return VideoJob(**(fields | changes))


def chat_job(
    text: str = "a red circle", *, job_id: str = "job-1", system: str | None = None, **changes: Any
) -> ChatJob:
    """Build a greedy text job with one user message and an optional system prompt."""
    system_messages = [] if system is None else [Message(role="system", content=system)]
    fields: dict[str, Any] = {
        "id": job_id,
        "type": "chat_conversation",
        "expected_time": 15,
        "messages": (*system_messages, Message(role="user", content=text)),
        "max_tokens": 48,
        "temperature": 0.0,
        "seed": 7,
    }
    return ChatJob(**(fields | changes))


def worker(family: str = "sdxl", **changes: Any) -> Worker:
    """Build the worker record of an idle worker `{family}@host-gpu0` with a loaded model."""
    fields: dict[str, Any] = {
        "id": f"{family}@host-gpu0",
        "family": family,
        "queue": f"{family}_queue",
        "host": "host",
        "pid": 7,
        "gpu": "0",
        "state": "idle",
        "models": (family,),
        "version": "1",
        "started_at": time.time(),
        "seen_at": time.time(),
        "detail": {"info": {family: {"name": f"tiny-{family}"}}},
    }
    return Worker(**(fields | changes))


def services(models: Any, folder: Path, **changes: Any) -> Services:
    """Build the services of a workflow: real storage in `folder`, references from that storage only,
    `STAND_IN_GATE`."""
    store = LocalStore(folder / "assets")
    references = ReferenceResolver(
        lambda url, allowed: RequestFailure("no network"),
        lambda path, max_bytes: store.get(path, length=max_bytes),
        ReferenceLimits(1 << 20, 1 << 20),
    )
    fields: dict[str, Any] = {
        "models": models,
        "store": store,
        "gate": STAND_IN_GATE,
        "references": references,
    }
    return Services(**(fields | changes))


def downloaded_reference(image: Image.Image, *, tries: int) -> ReferenceResolver:
    """Build a resolver whose downloads return `image` as a PNG file, after that many tries."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    download = Download(file.getvalue(), tries)
    return ReferenceResolver(
        lambda url, allowed: download, lambda path, max_bytes: b"", ReferenceLimits(1 << 20, 1 << 20)
    )


@contextmanager
def publishing_to(broker_url: str, *, prefix: str | None = None, **options: Any) -> Iterator[None]:
    """Make the Celery app publish to `broker_url`, under a prefix of its keys and with these transport
    options, inside the `with` block."""
    before = celery_app.conf.get("broker_url"), celery_app.conf.broker_transport_options

    def switch(url: str, options: dict[str, Any]) -> None:
        celery_app.conf.broker_url = url
        celery_app.conf.broker_transport_options = options
        celery_app._after_fork()

    changes = options if prefix is None else {**options, "global_keyprefix": prefix}
    switch(broker_url, {**before[1], **changes})
    try:
        yield
    finally:
        switch(*before)


@dataclass
class ManualClock:
    """A clock in seconds that advances only when the test advances it."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


@dataclass
class RecordingRun:
    """A `Run` that records its calls and stores files for real.

    `stop_with` is raised by the step or text delta number `stop_at`. The first `unreachable` text deltas are
    not delivered. `before_put` is called with the key of each file before it is stored.
    """

    stop_at: int | None = None
    stop_with: Exception = field(default_factory=lambda: Cancelled("enough"))
    unreachable: int = 0
    before_put: Callable[[str], None] = lambda key: None
    enhancement_result: dict[str, Any] | None = None
    checkpoints: DenoisingCheckpoints | None = None
    steps: list[tuple[int, int]] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    puts: list[tuple[str, str]] = field(default_factory=list)
    """Keys and content types, in the order in which they were stored."""
    excluded_s: float = 0.0
    waits: int = 0
    previews: list[PreviewRenderer] = field(default_factory=list)

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self.stop_at:
            raise self.stop_with

    def wait_for_device(self) -> None:
        self.waits += 1

    def end_wait(self) -> None:
        self.waits -= 1

    def stream_text(self, text: str, tokens: int, max_tokens: int) -> bool:
        if self.unreachable:
            self.unreachable -= 1
            return False
        self.pieces.append(text)
        if self.stop_at is not None and tokens >= self.stop_at:
            raise self.stop_with
        return True

    def exclude(self, seconds: float) -> None:
        self.excluded_s += seconds

    def preview(self, snapshot: Snapshot) -> None:
        self.previews.append(snapshot())

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        self.before_put(key)
        store.put(key, data, content_type=content_type)
        self.puts.append((key, content_type))


@dataclass
class RecordingItem:
    """A text job in a batch. It records its end, which must happen once, in `outcome` or `error`."""

    job: ChatJob
    run: RecordingRun = field(default_factory=RecordingRun)
    gpu_s: float = 0.0
    outcome: Outcome | None = None
    error: Exception | None = None

    def end(self, outcome: Outcome) -> None:
        self._assert_open()
        self.outcome = outcome

    def fail(self, error: Exception) -> None:
        self._assert_open()
        self.error = error

    @property
    def text(self) -> str:
        """The text of the outcome."""
        assert self.outcome is not None, self.error
        return str(self.outcome.assets[0].metadata["text"])

    def _assert_open(self) -> None:
        assert self.outcome is None
        assert self.error is None


@dataclass
class QueuedItems:
    """A `JobSource` that returns no items for `after` calls and then all; `batch_sizes` records the calls."""

    items: list[RecordingItem] = field(default_factory=list)
    after: int = 0
    batch_sizes: list[int] = field(default_factory=list)

    def next_items(self, first: ChatJob, *, batch_size: int) -> list[RecordingItem]:
        self.batch_sizes.append(batch_size)
        if len(self.batch_sizes) <= self.after:
            return []
        next_items, self.items = self.items, []
        return next_items

    def stream_texts(self, parts: Sequence[StreamPart]) -> list[bool | Exception]:
        return [_result_of(part, cast(RecordingItem, part.item).run) for part in parts]

    def end(self, outcomes: Sequence[tuple[BatchItem, Outcome]]) -> None:
        for item, outcome in outcomes:
            item.end(outcome)


def _result_of(part: StreamPart, run: RecordingRun) -> bool | Exception:
    try:
        return run.stream_text(part.text, part.tokens, part.max_tokens)
    except Exception as error:  # noqa: BLE001
        return error.with_traceback(None)
