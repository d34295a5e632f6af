"""What a whole SDXL job costs beside the bare diffusers call, on one pipeline, in one run.

    python -m benchmarks.sdxl [--rounds 20] [--size 128] [--json]

Ours goes from the caller's payload to two delivered, signed callbacks: validation, safety gate, record,
claim, lease, progress at every step, six pictures as png with provenance and thumbnails in storage, commit.
The bare call gets the same prompt, seeds, steps, guidance and size and returns pictures in memory. Both take
turns, so that what else the machine does hits both. Beside them: one batch of six against six single calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ourvidz.jobs.catalog import CATALOG
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import loading

TYPE = "sdxl_image_fast"
PROMPT = "a big red circle on a blue background"
PICTURES = 6
SEED = 7


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved runs of each")
    parser.add_argument("--size", type=int, default=128, help="edge in pixels")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    recorder = CallbackRecorder()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        eager(Path(folder), recorder) as system,
    ):
        found = measure(system, rounds=asked.rounds, size_px=asked.size)
    recorder.close()
    report(found, as_json=asked.json)


def measure(system: Eager, *, rounds: int, size_px: int) -> dict[str, float]:
    """Median seconds of each of the three, taking turns."""
    job(system, "warm", size_px)
    pipe = bare_pipeline()
    contenders: dict[str, Callable[[int], object]] = {
        "our job of six": lambda k: job(system, f"job-{k}", size_px),
        "diffusers, one batch of six": lambda _: call(pipe, size_px, PICTURES),
        "diffusers, six single calls": lambda _: [call(pipe, size_px, 1) for _ in range(PICTURES)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(rounds):
        say(f"round {k + 1} of {rounds}")
        for name, run in contenders.items():
            started = time.perf_counter()
            run(k)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def job(system: Eager, name: str, size_px: int) -> None:
    """One job, from the payload to the delivered callbacks."""
    config = {"num_images": PICTURES, "width": size_px, "height": size_px, "seed": SEED}
    system.submit({"id": name, "type": TYPE, "prompt": PROMPT, "user_id": "bench", "config": config})
    if system.callbacks.statuses(name) != ["processing", "completed"]:
        raise RuntimeError(f"the job ended otherwise: {system.record(name)}")


def bare_pipeline() -> Any:
    """The diffusers pipeline that our job ran on."""
    models: Any = loading.loaded("sdxl")
    pipe = models.images()._pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, size_px: int, pictures: int) -> object:
    """The bare call, with the numbers of the job."""
    row = CATALOG[TYPE]
    return pipe(
        PROMPT,
        width=size_px,
        height=size_px,
        num_inference_steps=row.steps,
        guidance_scale=row.guidance_scale,
        num_images_per_prompt=pictures,
        generator=[torch.Generator().manual_seed(SEED + k) for k in range(pictures)],
    ).images


def report(found: dict[str, float], *, as_json: bool) -> None:
    """What each took, and the overhead of everything around the denoiser."""
    ours, bare, single = found.values()
    summary = {"overhead_ms": 1000 * (ours - bare), "overhead": ours / bare - 1, "batch_gain": single / bare}
    if as_json:
        print(json.dumps({"seconds": found, **summary}))
        return
    for name, taken in found.items():
        print(f"{name:32} {1000 * taken:8.0f} ms   {taken / bare:5.2f}")
    print(f"around the denoiser: {summary['overhead_ms']:.0f} ms, {summary['overhead']:.1%}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
