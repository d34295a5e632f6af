"""How the costs of the job system grow with what it holds.

    python -m benchmarks.scale [operations] [queued] [retention] [followers] [--queued 100000]

`operations`: what each operation of the ledger costs beside many queued jobs, and as a ratio to few.
`queued`: the same for a whole stack over HTTP, with its idle costs, its memory, and the rate of its worker.
`retention`: whether finished jobs are bounded by the retention time, on an injected clock.
`followers`: memory of a shim with many open event streams, and the latency of a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.results import Figures, Run, comparison_table, figures_table
from benchmarks.scale import followers, operations, queued, retention

PARTS = ("operations", "queued", "retention", "followers")


def main() -> None:
    """Run the parts that are named, or all of them, and print their figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--queued", type=int, default=100_000, help="queued jobs")
    parser.add_argument("--samples", type=int, default=200, help="calls of each operation")
    parser.add_argument("--followers", type=int, default=2000, help="open event streams")
    parser.add_argument("--tokens", type=int, default=300, help="tokens whose latency is measured")
    parser.add_argument(
        "--jobs-a-day", type=int, default=200, help="of the retention soak, which lasts 30 days"
    )
    parser.add_argument("--label", default="now")
    parser.add_argument("--output", type=Path, help="store the run as JSON")
    parser.add_argument("--against", type=Path, help="compare with a stored run")
    arguments = parser.parse_args()
    systems: dict[str, Figures] = {}
    for part in arguments.parts or PARTS:
        if part == "operations":
            systems[part] = operations.measure(arguments.queued, samples=arguments.samples)
        elif part == "queued":
            systems[part] = queued.measure(arguments.queued, samples=arguments.samples)
        elif part == "retention":
            systems[part] = retention.measure(arguments.jobs_a_day)
        else:
            systems[part] = followers.measure(arguments.followers, tokens=arguments.tokens)
        print(f"\n{part}\n{figures_table(systems[part])}", flush=True)
    run = Run("scale", arguments.label, systems)
    if arguments.output:
        run.write(arguments.output)
    if arguments.against:
        print(comparison_table(Run.read(arguments.against), run))


if __name__ == "__main__":
    main()
