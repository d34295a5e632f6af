"""What a warm Wan pipeline saves, and what a step cache saves and costs.

    python -m benchmarks.wan [--rounds 5] [--clips 8] [--json]

First, a picture and a clip of 17 frames as a job on the warm pipeline against the same as a process of its
own, `wan_generate.py`, which is how such systems are usually wired. Ours goes from the caller's payload to
two delivered, signed callbacks; both end with a file on the disk. They take turns, so that what else the
machine does hits both.

Then every step cache on trained weights: how much faster a clip is made, and how near it comes to the one
that is made without (PSNR). And, on a GPU, the full size: see `benchmarks.wan_gpu`.
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
from ourvidz.jobs.catalog import CATALOG
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.wan.caches import CACHES, CacheName
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.wiring.models import TINY_WAN_CAP_PX

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
"""Those of the catalog."""
Given = TypeVar("Given")
SAME_DB = 99.0
"""What two equal clips count as."""


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each")
    parser.add_argument("--clips", type=int, default=8, help="clips that every cache makes")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {
        "warm": warm_against_fresh(asked.rounds),
        "caches": [row for steps in STEPS for row in caches(asked.clips, steps)],
        "gpu": wan_gpu.measure() if torch.cuda.is_available() else None,
    }
    if asked.json:
        print(json.dumps(found))
    else:
        report(found)


def warm_against_fresh(rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    recorder = CallbackRecorder()
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        eager(Path(folder), recorder) as system,
    ):
        job(system, "warm", "video_fast", FRAMES)
        contenders: dict[str, Callable[[int], object]] = {
            "picture, warm": lambda k: job(system, f"picture-{k}", "image_fast", 1),
            "picture, fresh process": lambda _: process(Path(folder) / "picture.png", 1),
            f"{FRAMES} frames, warm": lambda k: job(system, f"clip-{k}", "video_fast", FRAMES),
            f"{FRAMES} frames, fresh process": lambda _: process(Path(folder) / "clip.mp4", FRAMES),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for k in range(rounds):
            say(f"round {k + 1} of {rounds}")
            for name, run in contenders.items():
                seconds[name].append(timed(partial(run, k))[1])
    recorder.close()
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def job(system: Eager, name: str, kind: str, frames: int) -> None:
    """One job, from the payload to the delivered callbacks."""
    config = {"frames": frames, "width": SIDE_PX, "height": SIDE_PX, "seed": SEED}
    system.submit({"id": name, "type": kind, "prompt": PROMPT, "user_id": "bench", "config": config})
    if system.callbacks.statuses(name) != ["processing", "completed"]:
        raise RuntimeError(f"the job ended otherwise: {system.record(name)}")


def process(file: Path, frames: int) -> None:
    """The same job in a process of its own."""
    row = CATALOG["video_fast"]
    told = {
        "prompt": PROMPT,
        "size": f"{SIDE_PX}*{SIDE_PX}",
        "frame_num": frames,
        "sample_steps": row.steps,
        "sample_guide_scale": row.guidance_scale,
        "base_seed": SEED,
        "save_file": file,
    }
    flags = [f"--{name}={value}" for name, value in told.items()]
    subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, capture_output=True)


def caches(clips: int, steps: int) -> list[dict[str, Any]]:
    """What every cache makes of the same clips, in turns with what is made without. Seconds are the
    processor's: small clips on a CPU that others use too say nothing by the clock on the wall."""
    plain = pipeline(None)
    cached = {name: pipeline(name) for name in CACHES}
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *CACHES)}
    near: dict[str, list[float]] = {name: [] for name in CACHES}
    for k in range(clips):
        say(f"{steps} steps, clip {k + 1} of {clips}")
        exact, taken = timed(partial(frames, plain, steps, k), time.process_time)
        seconds["none"].append(taken)
        for name, wan in cached.items():
            reused, taken = timed(partial(frames, wan, steps, k), time.process_time)
            seconds[name].append(taken)
            near[name].append(decibel(exact, reused))
    usual = statistics.median(seconds["none"])
    return [
        {
            "cache": name,
            "steps": steps,
            "seconds": (median := statistics.median(seconds[name])),
            "speed_up": usual / median,
            "psnr_db": statistics.mean(near[name]),
            "worst_db": min(near[name]),
        }
        for name in CACHES
    ]


def pipeline(cache: CacheName | None) -> WanPipeline:
    """The trained checkpoint that ships, warm."""
    options = WanOptions(cache=cache, previews=False)
    made = WanPipeline(find_wan(None), cap=TINY_WAN_CAP_PX, options=options)
    made.load()
    frames(made, 1, 0)
    return made


def frames(wan: WanPipeline, steps: int, k: int) -> np.ndarray:
    """Clip number `k`, (frames, height, width, 3)."""
    asked = VideoJob(
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
    made = wan.generate(asked, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(float)


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    """The PSNR of two clips of 8-bit levels."""
    error = float(np.square(one - other).mean())
    return SAME_DB if error == 0 else min(SAME_DB, 10 * float(np.log10(255**2 / error)))


def timed(run: Callable[[], Given], clock: Callable[[], float] = time.perf_counter) -> tuple[Given, float]:
    """What it gives, and the seconds it takes."""
    started = clock()
    given = run()
    return given, clock() - started


def report(found: dict[str, Any]) -> None:
    """The tables."""
    warm = found["warm"]
    for what in ("picture", f"{FRAMES} frames"):
        ours, fresh = warm[f"{what}, warm"], warm[f"{what}, fresh process"]
        print(f"{what:12} warm {ours:7.2f} s   fresh process {fresh:7.2f} s   {fresh / ours:5.1f}x")
    print()
    for row in found["caches"]:
        print(
            f"{row['cache']:12} {row['steps']:3} steps   {row['speed_up']:5.2f}x   "
            f"{row['psnr_db']:5.1f} dB, worst {row['worst_db']:5.1f} dB"
        )
    print()
    if found["gpu"] is None:
        print("full size: not measured on a GPU, torch sees none")
    for row in found["gpu"] or []:
        print(wan_gpu.line(row))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
