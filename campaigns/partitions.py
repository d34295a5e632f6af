"""Cut links and lost primaries under load: is any accepted job lost, does any end twice?

    python -m campaigns.partitions [--jobs 200] [--only TEXT] [--seed 1] [--folder DIR] [--json]

Two worker hosts, a shim host and two Redis servers with three sentinels, each in a network namespace. In each
scenario jobs are submitted while one fault lasts: a link is silent in both directions or in one, the primary
is separated from the other servers with or without a worker, or it is killed in the middle of claims and
ends. Then the network is healed, and the jobs are inspected.

Everything runs with `OURVIDZ_REPLICA_ACKS=1`, then the faults that replace the primary run with 0. What an
asynchronous failover loses is counted (`lost`, `doubled`) and allowed there only: that is what
`docs/how-to/production.md` says of an answer of 202. Exits with 1 if another promise was broken. Needs root
on Linux; where namespaces are forbidden nothing is tested, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from campaigns.distributed import HEADERS, SERVERS, SHIM, WORKERS, DistributedInstallation, links
from campaigns.load import Load, unreadable_images
from campaigns.network import OUTSIDE, Network, Unsupported
from campaigns.receiver import CallbackReceiver
from campaigns.storages import LocalFiles
from ourvidz.cli.console import print_note
from ourvidz.records.record import Record

HOSTS = (SHIM, *WORKERS, *SERVERS)
FAULT_S = 8.0
"""How long a fault lasts: longer than a lease, and than the sentinels need for a failover."""
LAG_S = 1.0
"""How long the replica is separated before the primary is killed: shorter than the sentinels are patient."""
UNBLOCKED_S = 60.0
"""After the failure some job must end this often while jobs are unfinished; else they count as blocked."""
HEALED_S = 60.0
CHARGED = ("WORKER_LOST", "TIMEOUT_ERROR")

Failure = Callable[[DistributedInstallation], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A failure under load. `replaces`: whether it is meant to replace the primary."""

    name: str
    fault: Failure
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one scenario.

    `acks`: the setting `OURVIDZ_REPLICA_ACKS`. `failovers`: how often the primary was replaced. `refused`:
    answers of the shim other than success, connection errors included. `recovered_s`: from the end of the
    fault to the end of the last job. `charged`: attempts that ended because a worker was silent. `lost`:
    accepted jobs that the ledger does not know. `doubled`: callers that heard of two endings. `unheard`:
    callers that heard of none. `failed`: jobs that failed. `blocked`: not ended when none had for a minute.
    `exited`: processes that ended, instead of connecting again. `unexpected`: answers that no failure
    explains.
    """

    scenario: str
    acks: int
    jobs: int
    seconds: float
    failovers: int
    refused: int
    recovered_s: float
    charged: int
    lost: int
    doubled: int
    unheard: int
    failed: int
    blocked: int
    files_missing: int
    exited: int
    unexpected: int

    @property
    def kept(self) -> bool:
        """Whether every promise was kept, except what an asynchronous failover may lose."""
        may_lose = self.acks == 0 and self.failovers > 0
        broken = any((self.failed, self.blocked, self.files_missing, self.exited, self.unexpected))
        return not broken and (may_lose or not (self.lost or self.doubled or self.unheard))


def cut(sender: str, receiver: str, *, both: bool) -> Failure:
    """A link that is silent for a while, from the sender to the receiver or in both directions."""

    def fault(installation: DistributedInstallation) -> None:
        installation.network.cut(sender, receiver)
        if both:
            installation.network.cut(receiver, sender)
        installation.pause(FAULT_S)

    return fault


def separate_primary(*companions: str) -> Failure:
    """The primary and some companions see each other, and nobody else."""

    def fault(installation: DistributedInstallation) -> None:
        inside = {installation.service.primary().name, *companions}
        for one in inside:
            for other in set(HOSTS) - inside:
                installation.network.cut(one, other)
                installation.network.cut(other, one)
        installation.pause(FAULT_S)

    return fault


def kill_primary(installation: DistributedInstallation) -> None:
    """Kill the primary, wait for the other one, and start it again as its replica."""
    former = installation.service.primary()
    installation.service.kill(former)
    installation.service.wait_for_failover(former)
    installation.service.start_server(former)


def kill_lagging_primary(installation: DistributedInstallation) -> None:
    """Kill the primary after its replica has received nothing for a moment."""
    primary = installation.service.primary().name
    (replica,) = set(SERVERS) - {primary}
    installation.network.cut(primary, replica)
    installation.pause(LAG_S)
    former = installation.service.primary()
    installation.service.kill(former)
    installation.network.heal()
    installation.service.wait_for_failover(former)
    installation.service.start_server(former)


def scenarios() -> Iterator[Scenario]:
    """Every scenario, with the faults that replace the primary at the end."""
    for one, other in links():
        yield Scenario(f"{one} -> {other}", cut(one, other, both=False))
        yield Scenario(f"{other} -> {one}", cut(other, one, both=False))
        yield Scenario(f"{one} <-> {other}", cut(one, other, both=True))
    yield Scenario("primary alone", separate_primary(), replaces=True)
    yield Scenario("primary with worker1", separate_primary(WORKERS[0]), replaces=True)
    yield Scenario("primary with shim", separate_primary(SHIM))
    yield Scenario("kill primary", kill_primary, replaces=True)
    yield Scenario("kill lagging primary", kill_lagging_primary, replaces=True)


def run_scenario(
    installation: DistributedInstallation,
    receiver: CallbackReceiver,
    scenario: Scenario,
    *,
    jobs: int,
    seed: int,
) -> Result:
    """Submit jobs, let the fault happen in the middle, heal, and inspect."""
    installation.wait_until(installation.is_ready, within_s=HEALED_S, what="the whole installation")
    started = time.monotonic()
    primary, exits = installation.service.primary(), len(installation.exits)
    load = Load(installation.shim, jobs=jobs, events=4, seed=seed, headers=HEADERS)
    _break_and_heal(installation, scenario, load, jobs)
    healed = time.monotonic()
    installation.wait_until(installation.service.is_complete, within_s=HEALED_S, what="the replica")
    ledger = installation.ledger
    blocked = _wait_until_none(
        installation,
        lambda: [record.job_id for record in ledger.records(load.accepted) if not record.finished],
    )
    recovered_s = time.monotonic() - healed
    known = [record.job_id for record in ledger.records(load.accepted)]
    unheard = _wait_until_none(
        installation, lambda: [job_id for job_id in known if not receiver.endings.get(job_id)]
    )
    records = ledger.records(load.accepted)
    doubled = [job_id for job_id in load.accepted if len(receiver.endings[job_id]) > 1]
    result = Result(
        scenario=scenario.name,
        acks=installation.replica_acks,
        jobs=len(load.accepted),
        seconds=round(time.monotonic() - started, 1),
        failovers=int(installation.service.primary() != primary),
        refused=load.answers.total(),
        recovered_s=round(recovered_s, 1),
        charged=sum(record.failures.get(code, 0) for record in records for code in CHARGED),
        lost=len(load.accepted) - len(records),
        doubled=len(doubled),
        unheard=len(unheard),
        failed=sum(record.status == "failed" for record in records),
        blocked=len(blocked),
        files_missing=sum(
            unreadable_images(LocalFiles(installation.assets).read, record) for record in records
        ),
        exited=len(installation.exits) - exits,
        unexpected=sum(load.unexpected.values()),
    )
    if not result.kept:
        findings = {"doubled": doubled, "unheard": unheard, "blocked": blocked}
        _explain(installation, receiver, findings, records)
    return result


def _break_and_heal(installation: DistributedInstallation, scenario: Scenario, load: Load, jobs: int) -> None:
    """Let the fault happen while three quarters of the jobs are submitted; heal, and submit the rest."""
    load.allow()
    installation.wait_until(lambda: len(load.accepted) > jobs // 8, within_s=HEALED_S, what="the first jobs")
    load.allow()
    load.allow()
    scenario.fault(installation)
    installation.network.heal()
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(load.finish)
        installation.wait_until(finished.done, within_s=4 * UNBLOCKED_S, what="the last submissions")
        finished.result()


def _wait_until_none(installation: DistributedInstallation, read: Callable[[], list[str]]) -> list[str]:
    """Read until nothing is left, or nothing has changed for `UNBLOCKED_S`; return what is left."""
    fewest, at = sys.maxsize, time.monotonic()
    while left := read():
        if len(left) < fewest:
            fewest, at = len(left), time.monotonic()
        elif time.monotonic() - at > UNBLOCKED_S:
            break
        installation.pause(0.2)
    return left


def _explain(
    installation: DistributedInstallation,
    receiver: CallbackReceiver,
    findings: dict[str, list[str]],
    records: list[Record],
) -> None:
    """Print what is known about broken promises."""
    for line in installation.exits:
        print_note(line)
    for what, names in findings.items():
        for name in names[:5]:
            print_note(f"{what}: {name}: {receiver.endings[name]}")
    for record in records:
        if record.status == "failed" or any(record.job_id in names for names in findings.values()):
            print_note(repr(record))
    print_note(installation.log_tails())


def run(folder: Path, selected: list[Scenario], *, jobs: int, seed: int, acks: int) -> Iterator[Result]:
    """Run scenarios on one installation, whose data and logs are in `folder`. Raises `Unsupported`."""
    with (
        Network(HOSTS) as network,
        CallbackReceiver(network.address(OUTSIDE)) as receiver,
        DistributedInstallation(folder, network, receiver, replica_acks=acks) as installation,
    ):
        for number, scenario in enumerate(selected):
            yield run_scenario(
                installation, receiver, scenario, jobs=jobs, seed=1000 * seed + 100 * acks + number
            )


def main() -> None:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200, help="number of jobs in each scenario")
    parser.add_argument("--only", default="", help="run the scenarios whose name contains this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the data and logs are kept; default is nowhere")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON document")
    arguments = parser.parse_args()
    # Else SIGTERM would leave the namespaces behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    selected = [scenario for scenario in scenarios() if arguments.only in scenario.name]
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="ourvidz-partitions-") as temporary:
            for acks in (1, 0):
                folder = (arguments.folder or Path(temporary)) / f"acks-{acks}"
                of_setting = [scenario for scenario in selected if acks or scenario.replaces]
                if not of_setting:
                    continue
                for result in run(folder, of_setting, jobs=arguments.jobs, seed=arguments.seed, acks=acks):
                    print_note(str(result))
                    results.append(result)
    except Unsupported as unsupported:
        print_note(f"skipped: {unsupported}")
        return
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        print_table(results)
    sys.exit(0 if all(result.kept for result in results) else 1)


def print_table(results: list[Result]) -> None:
    """Print one line for each scenario, and what was lost where it may be."""
    names = [field.name for field in fields(Result)]
    print(f"{names[0]:24}" + "".join(f"{name:>14}" for name in names[1:]))
    for result in results:
        values = (f"{getattr(result, name):>14}" for name in names[1:])
        print(f"{result.scenario:24}" + "".join(values))
    allowed = [result for result in results if result.acks == 0 and result.failovers]
    lost, doubled = sum(one.lost for one in allowed), sum(one.doubled for one in allowed)
    jobs = sum(one.jobs for one in allowed)
    print(
        f"failovers without OURVIDZ_REPLICA_ACKS: {lost} of {jobs} accepted jobs lost, {doubled} ended twice"
    )


if __name__ == "__main__":
    main()
