"""GPU-seconds of jobs: in the metadata, and in the sums of the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ourvidz.errors import Cancelled
from ourvidz.pipelines.stage_clock import StageClock
from ourvidz.records.gpu_usage import day_number, load_usage, today, total_seconds
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import loading
from ourvidz.workflows.chat import TextBatch
from ourvidz.workflows.run import FenceLost, LeasedRun
from tests.pipelines.helpers import raising

pytestmark = pytest.mark.model

PRICE = 3.6
"""A thousandth of it is the price of a second."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eager]:
    """An installation with a price, whose models no other test has loaded."""
    folder: Path = tmp_path_factory.mktemp("usage")
    variables = {"OURVIDZ_GPU_PRICE": PRICE, "OURVIDZ_EMBEDDING_CACHE_MIB": 3, "OURVIDZ_PREVIEWS": "false"}
    recorder = CallbackRecorder()
    with eager(folder, recorder, **variables) as system:
        yield system
    recorder.close()


def run(system: Eager, job_id: str, type_name: str, user_id: str = "busy", **config: Any) -> dict[str, Any]:
    """Run a job; return the payload of its last callback."""
    sizes = {"steps": 4, "width": 64, "height": 64}
    prompt = {"prompt": f"a hill, number {job_id}", "user_id": user_id, "config": sizes | config}
    system.submit({"id": job_id, "type": type_name} | prompt)
    return system.callbacks.of(job_id)[-1].payload


def pipeline_of(system: Eager, family: str) -> Any:
    models: Any = loading.models(system.control.settings, family)
    return models._pipelines()[family]


def test_the_sum_of_all_jobs_is_the_time_that_the_device_was_busy(
    running: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one per cent, failed and repeated attempts included; by day and type in the ledger, by stage in
    the callback."""
    busy_s, load_s = 0.0, 0.0
    for family in ("sdxl", "wan"):
        pipeline = pipeline_of(running, family)
        pipeline.unload()
        pipeline.clock = StageClock()
        began = time.perf_counter()
        pipeline.load()
        load_s += time.perf_counter() - began
        generate = pipeline.generate

        def timed(*args: Any, original: Any = generate, **kwargs: Any) -> Any:
            nonlocal busy_s
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                busy_s += time.perf_counter() - began

        monkeypatch.setattr(pipeline, "generate", timed)
    sent = [run(running, f"image-{n}", "sdxl_image_fast", num_images=3) for n in range(3)]
    sent += [run(running, "clip", "video_fast", frames=5)]
    transformer = pipeline_of(running, "wan").components.pipe.transformer
    with raising(transformer, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")):
        sent += [run(running, "failed", "video_fast", frames=5)]
    assert [one["status"] for one in sent] == ["completed"] * 4 + ["failed"]

    fields = running.control.ledger.gpu_usage([day_number(today())])[0]
    rows = load_usage(day_number(today()), fields, user_id="busy")
    assert {row.type: row.jobs for row in rows} == {"sdxl_image_fast": 3, "video_fast": 2}
    stages = [one["metadata"]["gpu_seconds"] for one in sent]
    shared_s = sum(one.get("load", 0.0) for one in stages)
    repeated_s = total_seconds(rows) - sum(one["total"] for one in stages)
    assert repeated_s > 0, "the attempt that was repeated is in the sums only"
    owed_s = sum(pipeline_of(running, family).clock._owed_load_s for family in ("sdxl", "wan"))
    assert total_seconds(rows) + owed_s == pytest.approx(busy_s + load_s, rel=0.01)
    assert shared_s > 0


def test_a_job_reports_its_stages_and_its_cost(running: Eager) -> None:
    """In the callback, for whoever pays."""
    metadata = run(running, "image", "sdxl_image_fast", user_id="ada")["metadata"]
    seconds = metadata["gpu_seconds"]
    assert {"encode", "denoise", "decode", "total"} <= seconds.keys()
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=0.005)
    assert metadata["gpu_cost"] == pytest.approx(seconds["total"] * PRICE / 3600, abs=2e-6)


def test_an_enhancement_counts_for_its_job_type(running: Eager) -> None:
    """It ran on another GPU than the picture, and on the account of the same user."""
    metadata = run(running, "enhanced", "image7b_fast_enhanced", user_id="eve")["metadata"]
    fields = running.control.ledger.gpu_usage([day_number(today())])[0]
    [row] = load_usage(day_number(today()), fields, user_id="eve")
    expected_s = metadata["gpu_seconds"]["total"] + metadata["enhancement_time"]
    assert metadata["enhancement_time"] > 0
    assert (row.jobs, row.gpu_seconds) == (1, pytest.approx(expected_s, abs=0.003))


def test_a_text_has_its_share_of_the_batch(running: Eager) -> None:
    """Alone, that is nearly all of the time that it took."""
    running.submit(
        {
            "id": "text",
            "type": "chat_conversation",
            "user_id": "ada",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
        }
    )
    metadata = running.callbacks.of("text")[-1].payload["metadata"]
    assert 0 < metadata["gpu_seconds"]["decode"] <= metadata["generation_time"] + 0.001


@pytest.mark.parametrize("type_name", ["chat_conversation", "chat_enhance"])
@pytest.mark.parametrize(
    "error", [Cancelled("enough"), FenceLost("text"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_text_that_does_not_end_well_counts(
    running: Eager, monkeypatch: pytest.MonkeyPatch, type_name: str, error: Exception
) -> None:
    """Whether it was cancelled, lost its fence, or failed in the middle: the GPU was busy for that long."""
    busy_s, after_text = 0.0, LeasedRun.after_text
    step = TextBatch.step

    def timed(batch: TextBatch) -> None:
        nonlocal busy_s
        decode = batch._decoder.step

        def decoding() -> Any:
            nonlocal busy_s
            began = time.perf_counter()
            try:
                deltas = decode()
                if deltas and deltas[0].tokens_generated >= 3 and isinstance(error, torch.OutOfMemoryError):
                    raise error
                return deltas
            finally:
                busy_s += time.perf_counter() - began

        monkeypatch.setattr(batch._decoder, "step", decoding)
        step(batch)
        monkeypatch.setattr(batch._decoder, "step", decode)

    def stopping(run: LeasedRun, verdict: Any) -> bool:
        if busy_s and not isinstance(error, torch.OutOfMemoryError):
            raise error
        return after_text(run, verdict)

    monkeypatch.setattr(TextBatch, "step", timed)
    monkeypatch.setattr(LeasedRun, "after_text", stopping)
    user = f"{type_name}-{type(error).__name__}"
    job_id = f"text-{user}"
    began = time.perf_counter()
    running.submit({"id": job_id, "type": type_name, "user_id": user, "prompt": "a fox", "max_tokens": 8})
    elapsed_s = time.perf_counter() - began
    fields = running.control.ledger.gpu_usage([day_number(today())])[0]
    [row] = load_usage(day_number(today()), fields, user_id=user)
    assert busy_s > 0
    assert busy_s - 0.002 <= row.gpu_seconds <= elapsed_s


def test_a_refused_commit_counts(running: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds that its outcome would have reported were used all the same."""
    ledger = running.control.ledger
    refused: list[Any] = []

    def refuse(commits: Any) -> list[bool]:
        refused.extend(commits)
        return [False for _ in commits]

    monkeypatch.setattr(ledger, "ends", refuse)
    sizes = {"steps": 1, "width": 64, "height": 64}
    running.submit(
        {"id": "lost", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "lo", "config": sizes}
    )
    [row] = load_usage(day_number(today()), ledger.gpu_usage([day_number(today())])[0], user_id="lo")
    expected_s = refused[0].outcome.metadata["gpu_seconds"]["total"]
    assert (row.jobs, row.gpu_seconds) == (0, pytest.approx(expected_s, abs=0.003))
