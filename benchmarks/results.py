"""Results of a benchmark: figures by name, medians over rounds, comparison with a stored run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

Figures = dict[str, float]
"""Measured values by name; the name ends with the unit, and may begin with a group and a colon."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a benchmark: the figures of each measured system, and where and when it was measured."""

    benchmark: str
    label: str
    systems: dict[str, Figures]
    measured: dict[str, str] = field(default_factory=lambda: circumstances())

    def write(self, path: Path) -> None:
        """Store the run as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a stored run."""
        return cls(**json.loads(path.read_text()))


def circumstances() -> dict[str, str]:
    """Time, commit, machine and load of this moment."""
    commit = ""
    with suppress(OSError, subprocess.SubprocessError):
        command = ("git", "describe", "--always", "--dirty")
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def medians(rounds: Iterable[Mapping[str, float]]) -> Figures:
    """The median of each figure over the rounds that have it, in order of first appearance."""
    measured = list(rounds)
    names = dict.fromkeys(name for figures in measured for name in figures)
    return {
        name: statistics.median(figures[name] for figures in measured if name in figures) for name in names
    }


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return statistics.median(values), cuts[98]


def figures_table(figures: Mapping[str, float]) -> str:
    """The figures, one a line."""
    width = max(map(len, figures), default=0)
    return "\n".join(f"{name:{width}}  {_number(value):>10}" for name, value in figures.items())


def systems_table(systems: Mapping[str, Figures], names: Iterable[str]) -> str:
    """The figures `names` of all systems, and their ratios to those of the first system."""
    shown = list(names)
    first = next(iter(systems.values()))
    width = max(map(len, systems))
    columns = [max(len(name), 16) + 2 for name in shown]
    lines = [" " * width + "".join(f"{name:>{column}}" for name, column in zip(shown, columns, strict=True))]
    for system, figures in systems.items():
        cells = []
        for name, column in zip(shown, columns, strict=True):
            text = "–"
            if name in figures:
                ratio = f" ({figures[name] / first[name]:.2f}x)" if first.get(name) else ""
                text = _number(figures[name]) + ratio
            cells.append(f"{text:>{column}}")
        lines.append(f"{system:{width}}" + "".join(cells))
    return "\n".join(lines)


def comparison_table(before: Run, after: Run) -> str:
    """Every figure of two runs side by side, with its ratio; by system."""
    lines = [_heading(before), _heading(after)]
    for system, figures in after.systems.items():
        earlier = before.systems.get(system, {})
        names = [*figures, *(name for name in earlier if name not in figures)]
        width = max(map(len, names), default=0)
        lines += ["", f"{system:{width}}  {before.label[:12]:>12}  {after.label[:12]:>12}  {'ratio':>7}"]
        for name in names:
            old, new = earlier.get(name), figures.get(name)
            ratio = f"{new / old:.2f}" if old and new is not None else "–"
            lines.append(f"{name:{width}}  {_number(old):>12}  {_number(new):>12}  {ratio:>7}")
    return "\n".join(lines)


def _heading(run: Run) -> str:
    return f"{run.label}: " + ", ".join(f"{name} {value}" for name, value in run.measured.items())


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
