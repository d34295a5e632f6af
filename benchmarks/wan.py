"""What a warm Wan pipeline saves, and the speed and accuracy of the step caches.

    python -m benchmarks.wan [--rounds 5] [--clips 8] [--json]

First, an image and a clip of 17 frames, each as a job on the warm pipeline and in a new process
(`wan_generate.py`), which loads libraries and checkpoint first. The job includes everything from the
payload to two delivered, signed callbacks. The runs are interleaved, so that other load on the machine
affects both.

Then every step cache on trained weights: the speed-up, and the PSNR to the clip without a cache. With a GPU
also the full size: see `benchmarks.wan_gpu`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import ourvidz
from benchmarks import wan_gpu
from ourvidz.cli.console import print_note
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.wan.caches import CACHES, CacheName
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring.wan import TINY_WAN_CAP_PX

SCRIPT = Path(ourvidz.__file__).parents[1] / "wan_generate.py"
PROMPT = "a red circle moves right over a green background"
PROMPTS = (
    PROMPT,
    "a blue square moves left over a yellow background",
    "a green triangle moves up over a white background",
    "a yellow star moves down over a purple background",
)
FRAMES = 17
SIDE_PX = 64
SEED = 7
STEPS = (25, 50)
"""The numbers of steps in the catalog."""
Result = TypeVar("Result")
MAX_PSNR_DB = 99.0
"""The PSNR of equal clips, which would be infinite."""


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each")
    parser.add_argument("--clips", type=int, default=8, help="clips generated with each cache")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {
        "warm": compare_warm_and_fresh(arguments.rounds),
        "caches": [row for steps in STEPS for row in compare_caches(arguments.clips, steps)],
        "gpu": wan_gpu.measure() if torch.cuda.is_available() else None,
    }
    if arguments.json:
        print(json.dumps(results))
    else:
        print_results(results)


def compare_warm_and_fresh(rounds: int) -> dict[str, float]:
    """Median seconds of an image and a clip, as a job and in a new process, from interleaved runs."""
    recorder = CallbackRecorder()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        eager(Path(folder), recorder) as system,
    ):
        run_job(system, "warm", "video_fast", FRAMES)
        runs: dict[str, Callable[[int], object]] = {
            "picture, warm": lambda k: run_job(system, f"picture-{k}", "image_fast", 1),
            "picture, fresh process": lambda _: run_script(Path(folder) / "picture.png", 1),
            f"{FRAMES} frames, warm": lambda k: run_job(system, f"clip-{k}", "video_fast", FRAMES),
            f"{FRAMES} frames, fresh process": lambda _: run_script(Path(folder) / "clip.mp4", FRAMES),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for k in range(rounds):
            print_note(f"round {k + 1} of {rounds}")
            for name, run in runs.items():
                seconds[name].append(timed(partial(run, k))[1])
    recorder.close()
    return {name: statistics.median(seconds_taken) for name, seconds_taken in seconds.items()}


def run_job(system: Eager, job_id: str, job_type: str, frames: int) -> None:
    """Run one job to its delivered callbacks. Raises `RuntimeError` if it does not complete."""
    config = {"frames": frames, "width": SIDE_PX, "height": SIDE_PX, "seed": SEED}
    system.submit({"id": job_id, "type": job_type, "prompt": PROMPT, "user_id": "bench", "config": config})
    if system.callbacks.statuses(job_id) != ["processing", "completed"]:
        raise RuntimeError(f"the job ended otherwise: {system.record(job_id)}")


def run_script(file: Path, frames: int) -> None:
    """Generate the same with `wan_generate.py` in a new process."""
    row = CATALOG["video_fast"]
    options = {
        "prompt": PROMPT,
        "size": f"{SIDE_PX}*{SIDE_PX}",
        "frame_num": frames,
        "sample_steps": row.steps,
        "sample_guide_scale": row.guidance_scale,
        "base_seed": SEED,
        "save_file": file,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, capture_output=True)


def compare_caches(clips: int, steps: int) -> list[dict[str, Any]]:
    """One row for each cache: median seconds of a clip, speed-up, and mean and lowest PSNR, from
    interleaved runs.

    Seconds are processor time: on a machine with other load the wall-clock time of small clips is too noisy.
    """
    uncached = load_pipeline(None)
    cached = {name: load_pipeline(name) for name in CACHES}
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *CACHES)}
    psnr_db: dict[str, list[float]] = {name: [] for name in CACHES}
    for k in range(clips):
        print_note(f"{steps} steps, clip {k + 1} of {clips}")
        exact, seconds_taken = timed(partial(generate, uncached, steps, k), time.process_time)
        seconds["none"].append(seconds_taken)
        for name, wan in cached.items():
            approximate, seconds_taken = timed(partial(generate, wan, steps, k), time.process_time)
            seconds[name].append(seconds_taken)
            psnr_db[name].append(psnr(exact, approximate))
    baseline = statistics.median(seconds["none"])
    return [
        {
            "cache": name,
            "steps": steps,
            "seconds": (median := statistics.median(seconds[name])),
            "speed_up": baseline / median,
            "psnr_db": statistics.mean(psnr_db[name]),
            "worst_db": min(psnr_db[name]),
        }
        for name in CACHES
    ]


def load_pipeline(cache: CacheName | None) -> WanPipeline:
    """Load the packaged checkpoint with a cache, and warm it up."""
    options = WanOptions(cache=cache, previews=False)
    wan = WanPipeline(find_wan(None), cap=TINY_WAN_CAP_PX, options=options)
    wan.load()
    generate(wan, 1, 0)
    return wan


def generate(wan: WanPipeline, steps: int, k: int) -> np.ndarray:
    """Generate clip number `k`; returns its frames as levels 0 to 255, (frames, height, width, 3)."""
    job = VideoJob(
        id="bench",
        type="video_fast",
        user_id="bench",
        expected_time=180,
        prompt=PROMPTS[k % len(PROMPTS)],
        steps=steps,
        guidance_scale=6.5,
        width=SIDE_PX,
        height=SIDE_PX,
        frames=FRAMES,
        seed=SEED + k,
    )
    clip = wan.generate(job, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in clip.frames]).astype(float)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """The peak signal-to-noise ratio (dB) of two clips with levels 0 to 255, at most `MAX_PSNR_DB`."""
    error = float(np.square(one - other).mean())
    return MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, 10 * float(np.log10(255**2 / error)))


def timed(run: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[Result, float]:
    """The result of `run`, and the seconds it takes."""
    started = clock()
    result = run()
    return result, clock() - started


def print_results(results: dict[str, Any]) -> None:
    """Print all results as tables."""
    warm = results["warm"]
    for output in ("picture", f"{FRAMES} frames"):
        ours, fresh = warm[f"{output}, warm"], warm[f"{output}, fresh process"]
        print(f"{output:12} warm {ours:7.2f} s   fresh process {fresh:7.2f} s   {fresh / ours:5.1f}x")
    print()
    for row in results["caches"]:
        print(
            f"{row['cache']:12} {row['steps']:3} steps   {row['speed_up']:5.2f}x   "
            f"{row['psnr_db']:5.1f} dB, worst {row['worst_db']:5.1f} dB"
        )
    print()
    if results["gpu"] is None:
        print("full size: not measured on a GPU, torch sees none")
    for row in results["gpu"] or []:
        print(wan_gpu.format_row(row))


if __name__ == "__main__":
    main()
