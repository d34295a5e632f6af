"""The duration of a complete SDXL job, compared with the bare diffusers call on the same pipeline.

    python -m benchmarks.sdxl [--rounds 20] [--size 128] [--threads N] [--stages] [--json]

A job includes validation, safety gate, record, claim, lease, progress at every step, six images as png with
provenance and thumbnails in storage, the commit and two delivered, signed callbacks. The bare call has the
same prompt, seeds, steps, guidance and size, and returns images in memory; it is measured as one batch of
six and as six single calls. The runs are interleaved, so that other load on the machine affects all of
them. Processor time hardly depends on other load, but does not include waiting. `--stages` measures the
stages of a job and of a bare call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import sdxl_gpu
from benchmarks.stages import Duration, Stopwatch, median
from ourvidz.cli.console import print_note
from ourvidz.jobs.catalog import CATALOG
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.storage.local import LocalStore
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring import loading
from ourvidz.workflows import assets

JOB_TYPE = "sdxl_image_fast"
PROMPT = "a big red circle on a blue background"
IMAGES = 6
SEED = 7


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved runs of each")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--threads", type=int, help="threads of torch; default as in a worker")
    parser.add_argument("--stages", action="store_true", help="measure the stages of a job")
    parser.add_argument(
        "--gpu", action="store_true", help="measure the full-size model instead, with random weights"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recorder = CallbackRecorder()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        eager(Path(folder), recorder) as system,
    ):
        if arguments.gpu:
            print_full_size(as_json=arguments.json)
        elif arguments.stages:
            print_stages(
                *measure_stages(system, rounds=arguments.rounds, size_px=arguments.size),
                as_json=arguments.json,
            )
        else:
            print_comparison(
                compare(system, rounds=arguments.rounds, size_px=arguments.size), as_json=arguments.json
            )
    recorder.close()


def compare(system: Eager, *, rounds: int, size_px: int) -> dict[str, Duration]:
    """The median duration of a job, of one batch, and of six single calls, from interleaved runs."""
    run_job(system, "warm", size_px)
    pipe = bare_pipeline(system)
    runs: dict[str, Callable[[int], object]] = {
        "our job of six": lambda k: run_job(system, f"job-{k}", size_px),
        "diffusers, one batch of six": lambda _: call_diffusers(pipe, size_px, IMAGES),
        "diffusers, six single calls": lambda _: [call_diffusers(pipe, size_px, 1) for _ in range(IMAGES)],
    }
    durations: dict[str, list[Duration]] = {name: [] for name in runs}
    for k in range(rounds):
        print_note(f"round {k + 1} of {rounds}")
        for name, run in runs.items():
            started = Duration(time.perf_counter(), time.process_time())
            run(k)
            durations[name].append(Duration(time.perf_counter(), time.process_time()) - started)
    return {name: median(measured) for name, measured in durations.items()}


def measure_stages(
    system: Eager, *, rounds: int, size_px: int
) -> tuple[dict[str, Duration], dict[str, Duration]]:
    """The median duration of each stage of a job, and of the bare call, from interleaved runs."""
    run_job(system, "warm", size_px)
    pipe = bare_pipeline(system)
    call_diffusers(pipe, size_px, IMAGES)
    ours, bare = Stopwatch(), Stopwatch()
    with ours.timing(*our_stages()):
        for k in range(rounds):
            print_note(f"round {k + 1} of {rounds}")
            with ours.round():
                time_all(ours, lambda k=k: run_job(system, f"job-{k}", size_px))  # type: ignore[misc]
            with bare.timing(*bare_stages(pipe)), bare.round():
                time_all(bare, lambda: call_diffusers(pipe, size_px, IMAGES))
    return ours.medians(), bare.medians()


def time_all(stopwatch: Stopwatch, run: Callable[[], object]) -> None:
    """Call `run` and add its duration to the stage `all`."""
    started = Duration(time.perf_counter(), time.process_time())
    run()
    stopwatch.add("all", Duration(time.perf_counter(), time.process_time()) - started)


def our_stages() -> list[tuple[object, str, str]]:
    """The functions of a job to time, as (owner, attribute, stage)."""
    verbs = [name for name in dir(Ledger) if callable(getattr(Ledger, name)) and not name.startswith("_")]
    return [
        (SDXLPipeline, "encode", "encode prompt"),
        (SDXLPipeline, "denoise", "denoise"),
        (SDXLPipeline, "decode", "decode"),
        (assets.AssetUploader, "finish", "wait for storage"),
        (assets, "encode_png", "encode files"),
        (assets, "thumbnail", "encode files"),
        (LocalStore, "put", "store"),
        *((Ledger, name, "ledger") for name in verbs),
    ]


def bare_stages(pipe: Any) -> list[tuple[object, str, str]]:
    """The functions of the bare call to time, as (owner, attribute, stage)."""
    return [
        (pipe, "encode_prompt", "encode prompt"),
        (pipe.unet, "forward", "denoise"),
        (pipe.scheduler, "step", "denoise"),
        (pipe.vae, "decode", "decode"),
        (pipe.image_processor, "postprocess", "decode"),
    ]


def run_job(system: Eager, name: str, size_px: int) -> None:
    """Run one job, from the payload to the delivered callbacks."""
    config = {"num_images": IMAGES, "width": size_px, "height": size_px, "seed": SEED}
    system.submit({"id": name, "type": JOB_TYPE, "prompt": PROMPT, "user_id": "bench", "config": config})
    if system.callbacks.statuses(name) != ["processing", "completed"]:
        raise RuntimeError(f"the job ended otherwise: {system.record(name)}")


def bare_pipeline(system: Eager) -> Any:
    """The diffusers pipeline that the jobs run on."""
    models: Any = loading.loaded(system.control.settings, "sdxl")
    pipe = models.images()._pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_diffusers(pipe: Any, size_px: int, images: int) -> object:
    """Call the diffusers pipeline with the parameters of the job, for a number of images."""
    row = CATALOG[JOB_TYPE]
    return pipe(
        PROMPT,
        width=size_px,
        height=size_px,
        num_inference_steps=row.steps,
        guidance_scale=row.guidance_scale,
        num_images_per_prompt=images,
        generator=[torch.Generator().manual_seed(SEED + k) for k in range(images)],
    ).images


def print_comparison(durations: dict[str, Duration], *, as_json: bool) -> None:
    """Print the three durations, and the overhead of a job over the bare call."""
    ours, bare, single = durations.values()
    summary = {
        "overhead_ms": 1000 * (ours.wall - bare.wall),
        "overhead": ours.wall / bare.wall - 1,
        "processor_overhead_ms": 1000 * (ours.processor - bare.processor),
        "batch_gain": single.wall / bare.wall,
    }
    if as_json:
        print(
            json.dumps(
                {"seconds": {name: asdict(duration) for name, duration in durations.items()}, **summary}
            )
        )
        return
    for name, duration in durations.items():
        print(
            f"{name:32} {1000 * duration.wall:8.0f} ms   {duration.wall / bare.wall:5.2f}"
            f"   {1000 * duration.processor:8.0f} ms of processors"
        )
    print(
        f"around the denoiser: {summary['overhead_ms']:.0f} ms, {summary['overhead']:.1%};"
        f" {summary['processor_overhead_ms']:.0f} ms of processors"
    )


def print_stages(ours: dict[str, Duration], bare: dict[str, Duration], *, as_json: bool) -> None:
    """Print both by stage. Stages on threads of their own overlap with others: the sum exceeds `all`."""
    for durations in (ours, bare):
        durations["outside the denoiser"] = durations["all"] - durations["denoise"]
    if as_json:
        both = {"ours": ours, "bare": bare}
        print(json.dumps({who: {n: asdict(d) for n, d in stages.items()} for who, stages in both.items()}))
        return
    print(f"{'ms':24} {'our job':>9} {'processor':>9} {'bare call':>9} {'processor':>9}")
    for name, duration in ours.items():
        other = bare.get(name, Duration())
        row = (duration.wall, duration.processor, other.wall, other.processor)
        print(f"{name:24}", *(f"{1000 * seconds:9.1f}" for seconds in row))


def print_full_size(*, as_json: bool) -> None:
    """Measure SDXL at its full size and print the rows. Exits if there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("full size: not measured on a GPU, torch sees none")
    rows = sdxl_gpu.measure()
    print(json.dumps(rows) if as_json else "\n".join(map(sdxl_gpu.format_row, rows)))


if __name__ == "__main__":
    main()
