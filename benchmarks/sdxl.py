"""What a whole SDXL job costs beside the bare diffusers call, on one pipeline, in one run.

    python -m benchmarks.sdxl [--rounds 20] [--size 128] [--threads N] [--stages] [--json]

Ours goes from the caller's payload to two delivered, signed callbacks: validation, safety gate, record,
claim, lease, progress at every step, six pictures as png with provenance and thumbnails in storage, commit.
The bare call gets the same prompt, seeds, steps, guidance and size and returns pictures in memory. Both take
turns, so that what else the machine does hits both. Beside them: one batch of six against six single calls.
Processor seconds stand beside the wall clock: they hardly move when others use the machine, but do not tell
of waiting. `--stages` tells where the time of one job goes, and of one bare call.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import sdxl_gpu
from benchmarks.stages import Stopwatch, Taken, median
from ourvidz import dispatch
from ourvidz.jobs.catalog import CATALOG
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.storage.local import LocalStore
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import loading
from ourvidz.workflows import assets

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
    parser.add_argument("--threads", type=int, help="torch's threads; default as a worker has them")
    parser.add_argument("--stages", action="store_true", help="where the time of a job goes")
    parser.add_argument("--gpu", action="store_true", help="the full size instead, with random weights")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    recorder = CallbackRecorder()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        eager(Path(folder), recorder) as system,
    ):
        if asked.gpu:
            report_full_size(as_json=asked.json)
        elif asked.stages:
            report_stages(*stages(system, rounds=asked.rounds, size_px=asked.size), as_json=asked.json)
        else:
            report(measure(system, rounds=asked.rounds, size_px=asked.size), as_json=asked.json)
    recorder.close()


def measure(system: Eager, *, rounds: int, size_px: int) -> dict[str, Taken]:
    """Median seconds of each of the three, taking turns."""
    job(system, "warm", size_px)
    pipe = bare_pipeline(system)
    contenders: dict[str, Callable[[int], object]] = {
        "our job of six": lambda k: job(system, f"job-{k}", size_px),
        "diffusers, one batch of six": lambda _: call(pipe, size_px, PICTURES),
        "diffusers, six single calls": lambda _: [call(pipe, size_px, 1) for _ in range(PICTURES)],
    }
    taken: dict[str, list[Taken]] = {name: [] for name in contenders}
    for k in range(rounds):
        say(f"round {k + 1} of {rounds}")
        for name, run in contenders.items():
            started = Taken(time.perf_counter(), time.process_time())
            run(k)
            taken[name].append(Taken(time.perf_counter(), time.process_time()) - started)
    return {name: median(runs) for name, runs in taken.items()}


def stages(system: Eager, *, rounds: int, size_px: int) -> tuple[dict[str, Taken], dict[str, Taken]]:
    """What the stages of our job take, and those of the bare call, taking turns."""
    job(system, "warm", size_px)
    pipe = bare_pipeline(system)
    call(pipe, size_px, PICTURES)
    ours, bare = Stopwatch(), Stopwatch()
    with ours.watching(*our_stages(system)):
        for k in range(rounds):
            say(f"round {k + 1} of {rounds}")
            with ours.round():
                timed(ours, lambda k=k: job(system, f"job-{k}", size_px))  # type: ignore[misc]
            with bare.watching(*bare_stages(pipe)), bare.round():
                timed(bare, lambda: call(pipe, size_px, PICTURES))
    return ours.medians(), bare.medians()


def timed(watch: Stopwatch, run: Callable[[], object]) -> None:
    """Run it and count all of it."""
    started = Taken(time.perf_counter(), time.process_time())
    run()
    watch.add("all", Taken(time.perf_counter(), time.process_time()) - started)


def our_stages(system: Eager) -> list[tuple[object, str, str]]:
    """What a job does, by what it is done with."""
    ledger = type(system.control.ledger)
    spoken = [name for name in dir(ledger) if callable(getattr(ledger, name)) and not name.startswith("_")]
    return [
        (SDXLPipeline, "encode", "encode words"),
        (SDXLPipeline, "denoise", "denoise"),
        (SDXLPipeline, "decode", "decode"),
        (assets.AssetUploader, "assets", "wait for storage"),
        (assets, "png", "encode files"),
        (assets, "thumbnail", "encode files"),
        (LocalStore, "put", "store"),
        (dispatch, "deliver", "deliver callbacks"),
        *((ledger, name, "ledger") for name in spoken),
    ]


def bare_stages(pipe: Any) -> list[tuple[object, str, str]]:
    """The same of diffusers' own call."""
    return [
        (pipe, "encode_prompt", "encode words"),
        (pipe.unet, "forward", "denoise"),
        (pipe.scheduler, "step", "denoise"),
        (pipe.vae, "decode", "decode"),
        (pipe.image_processor, "postprocess", "decode"),
    ]


def job(system: Eager, name: str, size_px: int) -> None:
    """One job, from the payload to the delivered callbacks."""
    config = {"num_images": PICTURES, "width": size_px, "height": size_px, "seed": SEED}
    system.submit({"id": name, "type": TYPE, "prompt": PROMPT, "user_id": "bench", "config": config})
    if system.callbacks.statuses(name) != ["processing", "completed"]:
        raise RuntimeError(f"the job ended otherwise: {system.record(name)}")


def bare_pipeline(system: Eager) -> Any:
    """The diffusers pipeline that our job ran on."""
    models: Any = loading.loaded(system.control.settings, "sdxl")
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


def report(found: dict[str, Taken], *, as_json: bool) -> None:
    """What each took, and the overhead of everything around the denoiser."""
    ours, bare, single = found.values()
    summary = {
        "overhead_ms": 1000 * (ours.wall - bare.wall),
        "overhead": ours.wall / bare.wall - 1,
        "processor_overhead_ms": 1000 * (ours.processor - bare.processor),
        "batch_gain": single.wall / bare.wall,
    }
    if as_json:
        print(json.dumps({"seconds": {name: asdict(taken) for name, taken in found.items()}, **summary}))
        return
    for name, taken in found.items():
        print(
            f"{name:32} {1000 * taken.wall:8.0f} ms   {taken.wall / bare.wall:5.2f}"
            f"   {1000 * taken.processor:8.0f} ms of processors"
        )
    print(
        f"around the denoiser: {summary['overhead_ms']:.0f} ms, {summary['overhead']:.1%};"
        f" {summary['processor_overhead_ms']:.0f} ms of processors"
    )


def report_stages(ours: dict[str, Taken], bare: dict[str, Taken], *, as_json: bool) -> None:
    """Both by stage. Stages on threads of their own run beside others: they do not add up."""
    for one in (ours, bare):
        one["outside the denoiser"] = one["all"] - one["denoise"]
    if as_json:
        told = {"ours": ours, "bare": bare}
        print(json.dumps({who: {n: asdict(taken) for n, taken in one.items()} for who, one in told.items()}))
        return
    print(f"{'ms':24} {'our job':>9} {'processor':>9} {'bare call':>9} {'processor':>9}")
    for name, mine in ours.items():
        theirs = bare.get(name, Taken())
        row = (mine.wall, mine.processor, theirs.wall, theirs.processor)
        print(f"{name:24}", *(f"{1000 * seconds:9.1f}" for seconds in row))


def report_full_size(*, as_json: bool) -> None:
    """SDXL at its full size, where there is a GPU for it."""
    if not torch.cuda.is_available():
        raise SystemExit("full size: not measured on a GPU, torch sees none")
    rows = sdxl_gpu.measure()
    print(json.dumps(rows) if as_json else "\n".join(map(sdxl_gpu.line, rows)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
