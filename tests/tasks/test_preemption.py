"""A long job yields to a short one between two steps, and then continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.app.trace import build_tracer
from PIL import Image

from ourvidz import dispatch
from ourvidz.app import app
from ourvidz.callbacks.delivery import CallbackSender
from ourvidz.errors import InvalidParameters, ReferenceFrameError, StorageError
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import GeneratedVideo, ReferenceImages
from ourvidz.pipelines.stage_clock import LOAD, StageClock
from ourvidz.records.gpu_usage import day_number, load_usage, today
from ourvidz.records.record import Record
from ourvidz.settings import Settings
from ourvidz.storage.local import LocalStore
from ourvidz.tasks import preemption
from ourvidz.tasks.preemption import CachedReferences, Preemption, passing_types
from ourvidz.testing import CallbackRecorder, eager
from ourvidz.workflows.services import UnsharedDevice
from tests.factories import ManualClock, video_job

STEPS = 40
MARKS: list[tuple[str, int]] = []
"""Job id and step of every step of every job."""
AT_STEP: dict[tuple[str, int], Callable[[], Any]] = {}
"""What happens at a step, as another process would do it."""


STEP_S = 2.0
DEVICE_TIME = ManualClock()
"""The time of the device: a load and every step take `STEP_S` of it."""


class SteppingPipeline:
    """A pipeline whose state is the number of its step."""

    clock = StageClock(DEVICE_TIME)

    def generate(
        self,
        job: VideoJob,
        *,
        references: ReferenceImages | None,
        on_step: Callable[[int, int], None],
        checkpoints: Any,
        **_: Any,
    ) -> GeneratedVideo:
        with self.clock.stage(LOAD):
            DEVICE_TIME.advance(STEP_S)
        stored = next(iter(checkpoints.stored()), None) if checkpoints else None
        for step in range(1 if stored is None else int(stored) + 1, STEPS + 1):
            MARKS.append((job.id, step))
            with self.clock.stage("denoise"):
                DEVICE_TIME.advance(STEP_S)
            AT_STEP.pop((job.id, step), lambda: None)()
            if job.prompt == "refuse":
                raise InvalidParameters("this prompt is refused", field="prompt")
            if job.prompt == "break":
                raise ValueError(job.prompt)
            on_step(step, STEPS)
            if checkpoints and checkpoints.is_due():
                checkpoints.save(str(step).encode)
        frames = [Image.new("RGB", (job.width, job.height), (128, 128, 128))] * job.frames
        return GeneratedVideo(seconds=0.0, frames=frames, fps=12, seed=job.seed, frames_generated=job.frames)


class SteppingModels:
    """The models of a Wan worker."""

    def videos(self) -> SteppingPipeline:
        return SteppingPipeline()

    def memory(self) -> dict[str, Any]:
        return {}

    def take_gpu_seconds(self) -> dict[str, float]:
        return SteppingPipeline.clock.take()

    def give_back_gpu_seconds(self, seconds: dict[str, float]) -> None:
        SteppingPipeline.clock.give_back(seconds)


def build(settings: Settings, family: str) -> SteppingModels:
    """Build the models; `OURVIDZ_MODELS` names this function."""
    return SteppingModels()


@pytest.fixture
def ledger(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    """The ledger of this process. A job yields as soon as its share allows it."""
    monkeypatch.setattr(CallbackSender, "deliver", lambda *_: None)
    monkeypatch.setattr(preemption, "LOOK_S", 0.0)
    MARKS.clear()
    DEVICE_TIME.now = 0.0
    SteppingPipeline.clock = StageClock(DEVICE_TIME)
    AT_STEP.clear()
    variables = {"OURVIDZ_MODELS": f"{__name__}:build", "OURVIDZ_PREEMPT_EVERY_S": 1e-9}
    with eager(tmp_path, ourvidz_callbacks, **variables) as running:
        yield running.control.ledger


def run_task(record: Record) -> None:
    """Run the task of a job's message as a pool's child does."""
    task = app.tasks[CATALOG[record.type].task]
    trace = build_tracer(task.name, task, app=app, hostname="wan@host")
    request = {"id": record.job_id, "task": task.name, "hostname": "wan@host", "is_eager": False}
    trace(record.job_id, (dispatch.message(record),), {}, request)


def register(ledger: Ledger, job_id: str, **changes: Any) -> Record:
    return ledger.register(video_job(job_id, **changes), priority=6).record


def register_image(ledger: Ledger, job_id: str = "image", **changes: Any) -> Record:
    return register(ledger, job_id, type="image_fast", frames=1, **changes)


def record_of(ledger: Ledger, job_id: str) -> Record:
    record = ledger.get(job_id)
    assert record is not None
    return record


def metadata_of(ledger: Ledger, job_id: str) -> dict[str, Any]:
    outcome = record_of(ledger, job_id).outcome
    assert outcome is not None
    return outcome.metadata


def test_an_image_runs_between_two_steps_of_a_clip(ledger: Ledger) -> None:
    """No step is repeated, and a clip that waits keeps waiting."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: (register(ledger, "second"), register_image(ledger))
    run_task(clip)
    before, between, after = MARKS[:10], MARKS[10 : 10 + STEPS], MARKS[10 + STEPS :]
    assert before == [("clip", step) for step in range(1, 11)]
    assert between == [("image", step) for step in range(1, STEPS + 1)]
    assert after == [("clip", step) for step in range(11, STEPS + 1)]
    assert [record_of(ledger, name).status for name in ("clip", "image", "second")] == [
        "completed",
        "completed",
        "queued",
    ]
    assert metadata_of(ledger, "clip")["preemptions"] == 1
    assert metadata_of(ledger, "clip")["preempted_s"] > 0
    assert "preemptions" not in metadata_of(ledger, "image")


def usage_s(ledger: Ledger) -> dict[str, float]:
    """The GPU-seconds of today by job type."""
    fields = ledger.gpu_usage([day_number(today())])[0]
    return {row.type: row.gpu_seconds for row in load_usage(day_number(today()), fields)}


@pytest.mark.parametrize("image_prompt", ["a hill", "refuse", "break"])
def test_each_job_pays_for_its_own_seconds(ledger: Ledger, image_prompt: str) -> None:
    """A clip that yielded pays once for each step and for both of its loads, and the image for its own, also
    if it fails or is tried again. All together is the time that the device was busy."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger, "image", prompt=image_prompt)
    run_task(clip)
    assert record_of(ledger, "clip").status == "completed"
    seconds, used = metadata_of(ledger, "clip")["gpu_seconds"], usage_s(ledger)
    assert seconds["denoise"] == STEP_S * STEPS
    # Two loads are its own; that of the image it may share.
    assert 2 * STEP_S <= seconds["load"] <= 3 * STEP_S
    assert used["video_fast"] == seconds["total"]
    owed_s = SteppingPipeline.clock._owed_load_s
    assert sum(used.values()) + owed_s == DEVICE_TIME.now
    image_steps = sum(job_id != "clip" for job_id, _ in MARKS)
    assert STEP_S * image_steps <= used["image_fast"] <= STEP_S * (image_steps + 1)


def test_the_delay_of_a_clip_is_bounded(ledger: Ledger) -> None:
    """Of many images one passes: two would take more than a quarter of the clip's time."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: [register_image(ledger, f"image-{number}") for number in range(5)]
    run_task(clip)
    assert metadata_of(ledger, "clip")["preemptions"] == 1
    assert [record_of(ledger, f"image-{number}").status for number in range(5)] == [
        "completed",
        *["queued"] * 4,
    ]


@pytest.mark.parametrize(("prompt", "status"), [("refuse", "failed"), ("break", "failed")])
def test_an_image_that_fails_is_no_failure_of_the_clip(ledger: Ledger, prompt: str, status: str) -> None:
    """Each job ends on its own."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger, prompt=prompt)
    run_task(clip)
    assert record_of(ledger, "image").status == status
    assert record_of(ledger, "clip").status == "completed"
    assert MARKS[-1] == ("clip", STEPS)


def test_a_clip_that_is_cancelled_meanwhile_stops_when_it_is_its_turn(ledger: Ledger) -> None:
    """The image is completed."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    AT_STEP["image", 5] = lambda: ledger.request_cancel("clip")
    run_task(clip)
    assert [record_of(ledger, name).status for name in ("clip", "image")] == ["cancelled", "completed"]
    assert ("clip", 12) not in MARKS


def test_both_jobs_of_a_worker_that_dies_meanwhile_are_queued_again_uncharged(ledger: Ledger) -> None:
    """Either may have been the cause; then each runs alone, and the clip yields no more."""
    clip = register(ledger, "clip")
    held: list[Record] = []
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    AT_STEP["image", 5] = lambda: held.extend(ledger.leased_by("wan@host"))
    AT_STEP["image", 6] = lambda: [ledger.rescue(record) for record in held]
    run_task(clip)
    records = [record_of(ledger, name) for name in ("clip", "image")]
    assert [(each.status, each.attempt, each.failures, each.alone) for each in records] == [
        ("queued", 0, {}, True)
    ] * 2
    register_image(ledger, "other")
    run_task(records[0])
    assert "preemptions" not in metadata_of(ledger, "clip")


def test_a_clip_that_has_yielded_is_charged_for_the_second_loss(ledger: Ledger) -> None:
    """Its worker dies after the image has ended, which may have been the cause. It runs alone then, so nobody
    keeps a clip that kills workers uncharged by sending images."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    AT_STEP["clip", 30] = lambda: ledger.rescue(*ledger.leased_by("wan@host"))
    run_task(clip)
    again = record_of(ledger, "clip")
    assert (again.status, again.attempt, again.failures, again.alone) == ("queued", 0, {}, True)
    assert record_of(ledger, "image").status == "completed"
    register_image(ledger, "other")
    AT_STEP["clip", 35] = lambda: ledger.rescue(*ledger.leased_by("wan@host"))
    run_task(again)
    charged = record_of(ledger, "clip")
    assert (charged.status, charged.attempt, charged.failures) == ("queued", 1, {"WORKER_LOST": 1})


def test_a_clip_that_cannot_store_its_state_makes_no_room(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lose what it has computed."""
    put = LocalStore.put

    def refuse_checkpoints(self: LocalStore, key: str, *args: Any, **options: Any) -> None:
        if key.startswith("checkpoints/"):
            raise StorageError("the disk is full")
        put(self, key, *args, **options)

    monkeypatch.setattr(LocalStore, "put", refuse_checkpoints)
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    run_task(clip)
    assert [step for _, step in MARKS] == list(range(1, STEPS + 1))
    assert [record_of(ledger, name).status for name in ("clip", "image")] == ["completed", "queued"]


@pytest.mark.parametrize("failing", ["claim", "end"])
def test_an_image_that_the_ledger_cannot_handle_does_not_end_the_clip(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The clip of one caller failed for good because of the image of another."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    operation = getattr(ledger, failing)

    def fail(job: Any, *args: Any, **options: Any) -> Any:
        if getattr(job, "job_id", job) == "image":
            raise ValueError("what is stored cannot be read")
        return operation(job, *args, **options)

    monkeypatch.setattr(ledger, failing, fail)
    run_task(clip)
    assert (record_of(ledger, "clip").status, record_of(ledger, "clip").attempt) == ("completed", 1)
    assert MARKS[-1] == ("clip", STEPS)


def test_clips_that_wait_are_not_published_again_because_an_image_passed_them(ledger: Ledger) -> None:
    """The sweep takes a job that a later one of its priority has overtaken for one whose message is lost."""
    clip = register(ledger, "clip")
    AT_STEP["clip", 10] = lambda: (register(ledger, "second"), register_image(ledger))
    run_task(clip)
    assert ledger.last_claims("wan_queue").order(6) < record_of(ledger, "second").order


def test_a_clip_that_failed_before_runs_alone(ledger: Ledger) -> None:
    """It may have been the memory that it needs."""
    register(ledger, "clip")
    claim = ledger.claim("clip", 1, worker_id="wan@other", lease_s=60, token="t")
    assert claim is not None
    ledger.release(claim, code="OOM_ERROR", due_in_s=0)
    AT_STEP["clip", 10] = lambda: register_image(ledger)
    run_task(record_of(ledger, "clip"))
    assert record_of(ledger, "clip").status == "completed"
    assert "preemptions" not in metadata_of(ledger, "clip")


@pytest.mark.parametrize(
    "hindrance", ["paused", "due later", "failed before", "cancelled", "claimed elsewhere"]
)
def test_what_cannot_run_now_does_not_pass(ledger: Ledger, hindrance: str) -> None:
    """The clip goes on."""
    clip, image = register(ledger, "clip"), register_image(ledger)
    if hindrance == "paused":
        AT_STEP["clip", 1] = lambda: ledger.set_paused("wan_queue", True)
    elif hindrance == "cancelled":
        ledger.request_cancel("image")
    else:
        claim = ledger.claim("image", 1, worker_id="wan@other", lease_s=60, token="t")
        assert claim is not None
        if hindrance == "due later":
            ledger.release(claim, code="STORAGE_ERROR", due_in_s=60)
        elif hindrance == "failed before":
            ledger.release(claim, code="STORAGE_ERROR", due_in_s=0)
    run_task(clip)
    assert record_of(ledger, "clip").status == "completed"
    assert record_of(ledger, image.job_id).status != "completed"
    assert "preemptions" not in metadata_of(ledger, "clip")


def test_only_much_shorter_types_of_the_same_family_pass() -> None:
    """By the catalog: a quarter of the time at most."""
    assert passing_types("video_high") == {"image_fast"}
    assert passing_types("video_fast") == {"image_fast"}
    assert passing_types("sdxl_image_high") == frozenset()
    assert all(not passing_types(name) for name, row in CATALOG.items() if row.family == "chat")


class TestWhen:
    """The interval, and the share of a job's time, on an injected clock."""

    @pytest.fixture
    def clip(self, make_ledger: Callable[..., Any]) -> tuple[Preemption, ManualClock, Any]:
        ledger, clock = make_ledger(), ManualClock()
        ledger.register(video_job("clip"), priority=6)
        claim = ledger.claim("clip", 1, worker_id="wan@host", lease_s=60, token="t")
        register_image(ledger)
        shared = UnsharedDevice()
        policy = Preemption(claim, ledger, lambda: shared, every_s=30, turn_s=60, clock=clock)
        run = type("Steps", (), {"fraction": 0.0})()
        policy.watch(run)
        assert not policy.is_due()
        return policy, clock, run

    def test_it_works_for_the_interval_before_it_makes_room(self, clip: Any) -> None:
        policy, clock, run = clip
        clock.advance(29.9)
        run.fraction = 0.2
        assert not policy.is_due()
        clock.advance(0.2)
        assert policy.is_due()
        # Its state could not be stored: the next try comes after the interval.
        clock.advance(29)
        assert not policy.is_due()

    def test_a_job_near_its_end_may_be_delayed_by_as_much_as_at_its_beginning(
        self, clip: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The share is one of the whole work, and what was paused so far counts."""
        monkeypatch.setattr(preemption, "claim_companion", lambda *_, **__: None)
        policy, clock, run = clip
        clock.advance(50)
        run.fraction = 0.5
        assert policy.is_due()
        policy.claim_next()
        clock.advance(20)  # of 100 s of work a quarter may be lost, and 22 s are expected for the next image
        assert not policy.is_due()
        clock.advance(31)
        run.fraction = 0.81
        assert not policy.is_due()

    def test_another_worker_of_the_gpu_gets_its_turn(
        self, clip: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the work is long enough for one."""
        policy, clock, run = clip
        monkeypatch.setattr(UnsharedDevice, "must_yield", lambda _: True)
        clock.advance(40)
        run.fraction = 0.2
        # An image is queued; but once the clip leaves the device, it waits for a whole turn.
        assert not policy.is_due()
        clock.advance(100)
        run.fraction = 0.58
        assert policy.is_due()
        assert policy.claim_next() is None


def test_a_reference_that_could_not_be_used_stays_unused() -> None:
    """The clip has begun without it: with it, it would start over as another one."""
    calls = []

    class Resolver:
        def resolve(self, reference: str, *, user_id: str | None) -> Any:
            calls.append(reference)
            if len(calls) == 1:
                raise ReferenceFrameError("the host is down")
            return object()

    references = CachedReferences(Resolver())
    for _ in range(2):
        with pytest.raises(ReferenceFrameError, match="down"):
            references.resolve("a", user_id="u")
    assert calls == ["a"]


def test_references_of_a_job_are_resolved_once() -> None:
    """A second download may fail, or have other pixels."""
    calls = []

    class Resolver:
        def resolve(self, reference: str, *, user_id: str | None) -> Any:
            calls.append(reference)
            return object()

    references = CachedReferences(Resolver())
    assert references.resolve("a", user_id="u") is references.resolve("a", user_id="u")
    references.resolve("b", user_id="u")
    assert calls == ["a", "b"]
