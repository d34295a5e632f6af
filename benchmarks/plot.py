"""Draws the results of a benchmark with matplotlib (`pip install 'ourvidz[bench]'`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Run

OURS, OTHERS = "#1f6feb", "#9aa4b2"


def systems(run: Run, names: Sequence[str], path: Path) -> None:
    """Draw one bar chart for each figure in `names`, with a bar for each system that has it.

    The first system is OurVidz. The axes are logarithmic. The ending of `path` chooses the format.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(names), 0.35 * len(run.systems) + 1.4), layout="constrained")
    figure.suptitle(
        ", ".join((run.measured["time"], run.measured["machine"], f"load {run.measured['load']}"))
    )
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        rows = [(system, figures.get(name)) for system, figures in run.systems.items()]
        measured = [(system, value) for system, value in reversed(rows) if value is not None]
        colours = [OURS if system == rows[0][0] else OTHERS for system, _ in measured]
        bars = axis.barh([system for system, _ in measured], [value for _, value in measured], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.set_title(name, fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ourvidz"}):
        figure.savefig(path)
