"""How long a stack takes to its first picture, and what each process costs until then.

    python -m benchmarks.startup [--stacks null sdxl all] [--rounds 3]

Starts `ourvidz up` with null models, with the tiny SDXL checkpoint, and with all three families, submits an
SDXL job as soon as the shim answers, and prints a table of the processes: seconds from the start of each to
the end of its imports, to its first answer of the server, to loaded models and to readiness; processor time
and memory (PSS) when the stack is ready. Then the duration of commands. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import StackProcesses
from benchmarks.stack import running_stack
from ourvidz.cli.console import print_note
from ourvidz.cli.shim import Shim, ShimError
from ourvidz.cli.state import StateDir
from ourvidz.embedded_redis import free_port

STACKS: dict[str, tuple[str, dict[str, str]]] = {
    "null": ("sdxl", {"OURVIDZ_MODELS": "benchmarks.null_models:build"}),
    "sdxl": ("sdxl", {}),
    "all": ("sdxl,wan,chat", {}),
}
"""Name → workers, and variables."""
PHASES = ("imported", "connected", "loaded", "ready")
COLUMNS = (*(f"{phase} s" for phase in PHASES), "processor s", "PSS MiB")
COMMANDS = {
    "ourvidz --help": ("-m", "ourvidz.cli.main", "--help"),
    "ourvidz jobs list": ("-m", "ourvidz.cli.main", "jobs", "list"),
    "wan_generate.py --help": ("wan_generate.py", "--help"),
}
PAYLOAD: dict[str, Any] = {
    "id": "first-image",
    "type": "sdxl_image_fast",
    "prompt": "a big red circle on a blue background",
    "user_id": "benchmark",
    "config": {"num_images": 1, "seed": 7},
}
POLL_S = 0.02
LIMIT_S = 300.0
"""How long the shim may refuse the job."""

Row = dict[str, float]
"""The figures of one process, by column."""


@dataclass(frozen=True, slots=True)
class Start:
    """One measured start. Times are seconds since `ourvidz up` was started."""

    ready_s: float
    first_image_s: float
    processes: dict[str, Row] = field(default_factory=dict)


def main() -> None:
    """Measure all stacks and commands, and print the tables."""
    arguments = _parse()
    starts: dict[str, list[Start]] = {name: [] for name in arguments.stacks}
    for number in range(arguments.rounds):
        for name, measured in starts.items():
            print_note(f"round {number + 1}: the stack {name}")
            measured.append(measure(*STACKS[name]))
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} processors")
    for name, measured in starts.items():
        ready = statistics.median(start.ready_s for start in measured)
        first = statistics.median(start.first_image_s for start in measured)
        print(f"\n{name}: ready after {ready:.1f} s, first image after {first:.1f} s\n")
        print(table(median_rows([start.processes for start in measured])))
    print("\n| command | wall-clock s | processor s |\n|---|---|---|")
    for name, command in COMMANDS.items():
        wall_s, processor_s = measure_command(command, arguments.rounds)
        print(f"| {name} | {wall_s:.2f} | {processor_s:.2f} |")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


def measure(workers: str, variables: Mapping[str, str]) -> Start:
    """Start a stack and let it make one image."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as name, ThreadPoolExecutor(1) as pool:
        folder, began = Path(name), time.monotonic()
        image = pool.submit(_first_image, f"http://127.0.0.1:{port}", began)
        stack = running_stack(folder, workers=workers, port=port, OURVIDZ_LOG_FORMAT="json", **variables)
        with stack as ready:
            ready_s = time.monotonic() - began
            processes = StackProcesses(ready["up"], ready["pids"])
            figures = {"processor s": processes.processor_s(), "PSS MiB": processes.memory_mib()}
            first_image_s = image.result()
            rows = read_phases(StateDir(folder).log("x").parent)
        for column, by_role in figures.items():
            for role, value in by_role.items():
                rows.setdefault(role, {})[column] = value
        return Start(ready_s, first_image_s, rows)


def _first_image(url: str, began: float) -> float:
    """Submit a job as soon as the shim accepts it; seconds from `began` to its image."""
    shim = Shim(url, None)
    while time.monotonic() - began < LIMIT_S:
        with suppress(ShimError):
            if shim.post("/jobs", PAYLOAD):
                break
        time.sleep(POLL_S)
    while (job := shim.job(PAYLOAD["id"]))["status"] not in ("completed", "failed"):
        time.sleep(POLL_S)
    if job["status"] != "completed":
        raise SystemExit(f"the job failed: {job}")
    return time.monotonic() - began


def read_phases(logs: Path) -> dict[str, Row]:
    """The phases that the processes of a stack logged when they were ready, by role."""
    rows: dict[str, Row] = {}
    for file in sorted(logs.glob("*.log")):
        for event in _events(file.read_text().splitlines()):
            if event.get("event") == "process_ready":
                role = f"{file.stem} child" if event.get("part") == "child" else file.stem
                rows[role] = {f"{phase} s": event[f"{phase}_s"] for phase in PHASES if f"{phase}_s" in event}
    return rows


def _events(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """The JSON entries of a log; libraries write other lines too."""
    for line in lines:
        if line.startswith("{"):
            yield json.loads(line)


def measure_command(command: Sequence[str], rounds: int) -> tuple[float, float]:
    """Wall-clock and processor time (s) of a Python command, also one that fails: medians of rounds."""
    measured = []
    for _ in range(rounds):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([sys.executable, *command], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        measured.append((time.monotonic() - began, used))
    walls, processors = zip(*measured, strict=True)
    return statistics.median(walls), statistics.median(processors)


def median_rows(rounds: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """The medians of all figures over the rounds that have them."""
    roles = dict.fromkeys(role for rows in rounds for role in rows)
    return {
        role: {
            column: statistics.median(values)
            for column in COLUMNS
            if (values := [rows[role][column] for rows in rounds if column in rows.get(role, {})])
        }
        for role in roles
    }


def table(rows: Mapping[str, Row]) -> str:
    """The processes as a Markdown table, with the sums of processor time and memory."""
    lines = [f"| process | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for role, row in rows.items():
        lines.append(f"| {role} | {' | '.join(_cell(row.get(column), column) for column in COLUMNS)} |")
    sums = {column: sum(row.get(column, 0.0) for row in rows.values()) for column in COLUMNS[len(PHASES) :]}
    lines.append(f"| all | {' | '.join(_cell(sums.get(column), column) for column in COLUMNS)} |")
    return "\n".join(lines)


def _cell(value: float | None, column: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if column.endswith("MiB") else f"{value:.2f}"


if __name__ == "__main__":
    main()
