"""What the job system costs beside the model, compared with plain queues.

    python -m benchmarks.control_plane [--rounds 3] [--label NAME] [--output FILE] [--against FILE]

A job of OurVidz includes HTTP, validation, record, claim, lease, a null pipeline, a stored image with its
thumbnail, the commit and two delivered, signed callbacks; the peers run a no-op and deliver nothing. All
queues use the same Redis server: append-only file, `appendfsync always`. Rounds are interleaved; figures are
medians. Peers are installed into venvs of their own on first use.

Before and after a change, on a loaded machine too (compare processor time and counts, not jobs/s):

    python -m benchmarks.control_plane --no-peers --label before --output before.json
    python -m benchmarks.control_plane --no-peers --label after --against before.json
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from benchmarks import plot
from benchmarks.job_costs import JobCosts
from benchmarks.peers.measure import measure_peer
from benchmarks.peers.table import PEERS
from benchmarks.results import (
    Figures,
    Run,
    comparison_table,
    figures_table,
    medians,
    systems_table,
)
from benchmarks.stack import running_receiver, running_stack
from ourvidz.cli.console import print_note

OURS = "OurVidz"
COMPARED = ("submit to start: p50 ms", "submit to start: p99 ms", "jobs/s", "processor time a job: total ms")
"""The figures that peers have too."""
WARM_UP_JOBS = 20
POLLING_PROBES = 3
IDLE_S = 4.0
"""How long the idle stack is measured."""
WEBHOOK_SECRET = "whsec_b3VydmlkemJlbmNobWFyaw=="


def main() -> None:
    """Measure all systems and print the tables."""
    arguments = _parse()
    rounds: dict[str, list[Figures]] = defaultdict(list)
    print_note("starting the stack, with a null pipeline")
    with (
        tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder,
        running_receiver() as receiver,
        running_stack(
            Path(folder),
            workers="sdxl",
            OURVIDZ_MODELS="benchmarks.null_models:build",
            OURVIDZ_CALLBACK_URL=f"{receiver}/callback",
            JOB_CALLBACK_SECRET=secrets.token_hex(16),
            OURVIDZ_WEBHOOK_SECRET=WEBHOOK_SECRET,
        ) as ready,
        closing(JobCosts(ready, receiver)) as ours,
    ):
        ours.warm_up(WARM_UP_JOBS)
        for number in range(1, arguments.rounds + 1):
            print_note(f"round {number} of {arguments.rounds}: {OURS}")
            rounds[OURS].append(ours.latencies(arguments.probes) | ours.throughput(arguments.jobs))
            for peer in arguments.peers:
                print_note(f"round {number} of {arguments.rounds}: {PEERS[peer].name}")
                rounds[PEERS[peer].name].append(
                    measure_peer(
                        peer,
                        probes=POLLING_PROBES if peer == "polling" else arguments.probes,
                        jobs=arguments.jobs,
                        redis_url=ready["redis"],
                    )
                )
        print_note("commands, idle costs, memory")
        rounds[OURS].append(ours.commands(arguments.jobs) | ours.idle(IDLE_S) | ours.memory())
    run = Run(
        "control_plane", arguments.label, {system: medians(figures) for system, figures in rounds.items()}
    )
    _report(run, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=300, help="jobs of a round for throughput and costs")
    parser.add_argument("--probes", type=int, default=100, help="single jobs of a round for the latency")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="all by default")
    parser.add_argument("--no-peers", dest="peers", action="store_const", const=[])
    parser.add_argument("--label", default="now", help="name of this run in tables")
    parser.add_argument("--output", type=Path, help="store the run as JSON")
    parser.add_argument("--against", type=Path, help="compare with a stored run")
    parser.add_argument("--plot", type=Path, help="draw the systems into a .svg or .png file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def _report(run: Run, arguments: argparse.Namespace) -> None:
    if arguments.output:
        run.write(arguments.output)
    if arguments.plot:
        plot.systems(run, COMPARED, arguments.plot)
    if arguments.json:
        print(json.dumps(asdict(run), indent=2))
        return
    if arguments.against:
        print(comparison_table(Run.read(arguments.against), run))
    else:
        print(figures_table(run.systems[OURS]))
    if len(run.systems) > 1:
        print()
        print(systems_table(run.systems, COMPARED))


if __name__ == "__main__":
    main()
