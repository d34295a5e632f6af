"""Three families on one card that holds two of them: does every job end, and does nobody wait too long?

    python -m campaigns.card [--jobs 500] [--part 500] [--seed 1] [--turn 4] [--folder DIR] [--json]

`ourvidz up` with an SDXL, a Wan and a chat worker on an emulated card of 49 GiB with a budget of 47; their
models take 10, 30 (in three parts) and 15 GiB and no time to compute. Jobs of all three are submitted at
random; after every 20 a random worker process is killed, and a program that is none of ours takes and frees
memory.

`out_of_memory` counts the errors of the card, `lost` the jobs without an end, `failed` those that did not
complete, `late` the waits for memory that were longer than a turn and the longest job and load of each
family ahead. All must be 0. `loads` is compared with the least number of loads for the same sequence of jobs
and deaths (`optimal`): the ratio must not exceed 1.3.

With `--part N` each N jobs run in an installation of their own, and what a part has shown is kept in
`--folder`: the same command continues after the parts that are done. Parts of fewer than 100 jobs say little
about loads.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from campaigns.card_models import JOB_S, LOAD_S, MOVES, SIZES_MIB, WORK_MIB
from campaigns.installation import wait_until
from campaigns.receiver import CallbackReceiver
from campaigns.stack import Stack
from ourvidz.cli.console import print_note
from ourvidz.ledger.store import Ledger
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec

CARD_GIB, BUDGET_GIB = 49, 47
FOREIGN_MIB = 2000
"""What the other program takes at most: less than what is left beside the budget."""
JOBS_PER_KILL = 20
ENDED_S = 120.0
"""How long after the last submission the jobs have to end."""
RESTART_S = 12.0
"""What a killed worker may take to be back: imports on a busy machine."""
SLACK_S = 2.0
TYPES: Mapping[str, dict[str, Any]] = {
    "sdxl_image_fast": {"prompt": "a red hill", "config": {"width": 64, "height": 64, "steps": 1}},
    "video_fast": {"prompt": "a red hill", "config": {"frames": 5}},
    "chat_conversation": {"messages": [{"role": "user", "content": "Name a colour of the sea."}]},
}
WEIGHTS = (2, 1, 1)
MODEL_OF = {"sdxl_image_fast": "sdxl", "video_fast": "wan", "chat_conversation": "qwen_instruct"}


@dataclass(frozen=True, slots=True)
class Result:
    """What one run has shown; see the module's text."""

    jobs: int
    kills: int
    seconds: float
    loads: int
    optimal: int
    longest_wait_s: float
    allowed_wait_s: float
    out_of_memory: int
    lost: int
    failed: int
    late: int

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        broken = self.out_of_memory or self.lost or self.failed or self.late
        return not broken and self.loads <= 1.3 * self.optimal


def run(folder: Path, *, jobs: int, seed: int, turn_s: float) -> Result:
    """Run the campaign once."""
    started, chance = time.monotonic(), random.Random(seed)
    card = f"card:{CARD_GIB}GiB"
    with (
        CallbackReceiver() as receiver,
        Stack(
            folder,
            receiver,
            workers=("sdxl", "wan", "chat"),
            OURVIDZ_MODELS="campaigns.card_models:build",
            OURVIDZ_EMULATED_GPU=card,
            OURVIDZ_GPU_BUDGET_MIB=str(BUDGET_GIB * 1024),
            OURVIDZ_HOST_BUDGET_MIB=str(64 * 1024),
            OURVIDZ_GPU_TURN_S=str(turn_s),
        ) as stack,
        _foreign_program(folder, card, chance),
        _waits(stack.ledger) as waits,
    ):
        names, kills = _submit(stack, jobs, chance)
        lost = _wait_for_ends(stack, names)
        records = stack.ledger.records(names)
    moves = [json.loads(line) for line in (folder / MOVES).read_text().splitlines()]
    # In front of one family may be the other two, and a killed worker restarts before it asks again.
    allowed_s = 2 * (turn_s + max(JOB_S.values()) + max(LOAD_S.values())) + RESTART_S + SLACK_S
    return Result(
        jobs=len(names),
        kills=kills,
        seconds=round(time.monotonic() - started, 1),
        loads=sum(move["what"] == "load" for move in moves),
        optimal=fewest_loads(moves),
        longest_wait_s=round(max(waits.values(), default=0.0), 1),
        allowed_wait_s=allowed_s,
        out_of_memory=sum(move["what"] == "out of memory" for move in moves),
        lost=len(lost) + len(names) - len(records),
        failed=sum(record.finished and record.status != "completed" for record in records),
        late=sum(seconds > allowed_s for seconds in waits.values()),
    )


def run_in_parts(folder: Path, *, jobs: int, part: int, seed: int, turn_s: float) -> Result:
    """Run the campaign in parts of so many jobs, without those that were run before with these numbers."""
    results = []
    for number, first in enumerate(range(0, jobs, part)):
        count = min(part, jobs - first)
        kept = folder / f"part-{seed + number}-{count}-{turn_s:g}.json"
        if not kept.exists():
            state = folder / kept.stem
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir(parents=True)
            result = run(state, jobs=count, seed=seed + number, turn_s=turn_s)
            kept.write_text(json.dumps(asdict(result)))
            print_note(f"{first + count:4} jobs, {result}")
        results.append(Result(**json.loads(kept.read_text())))
    return together(results)


def together(results: list[Result]) -> Result:
    """One result for several: the sums, and of the waits the longest."""
    rows = [asdict(result) for result in results]
    longest = ("longest_wait_s", "allowed_wait_s")
    return Result(**{name: (max if name in longest else sum)(row[name] for row in rows) for name in rows[0]})


def fewest_loads(moves: list[dict[str, Any]]) -> int:
    """The least number of loads for the jobs of `moves` in their order, if it were known in advance: what
    is needed last leaves (Belady). A model whose process was replaced is absent again."""
    jobs = [move for move in moves if move["what"] == "job"]
    present: dict[str, int] = {}
    loads = 0
    for position, job in enumerate(jobs):
        model, pid = job["model"], job["pid"]
        if present.get(model) == pid:
            continue
        present.pop(model, None)
        loads += 1
        while sum(SIZES_MIB[each] for each in present) + SIZES_MIB[model] + WORK_MIB > BUDGET_GIB * 1024:
            present.pop(max(present, key=lambda each: _next_use(jobs, position, each)))
        present[model] = pid
    return loads


def _next_use(jobs: list[dict[str, Any]], position: int, model: str) -> int:
    later = (index for index in range(position, len(jobs)) if jobs[index]["model"] == model)
    return next(later, len(jobs))


def _submit(stack: Stack, jobs: int, chance: random.Random) -> tuple[list[str], int]:
    """Submit the jobs, and kill a random worker process after every `JOBS_PER_KILL`. Returns their ids, and
    how many processes were killed."""
    names, kills = [], 0
    for number in range(jobs):
        (kind,) = chance.choices(list(TYPES), WEIGHTS)
        name = f"card-{number}"
        payload = TYPES[kind] | {"id": name, "type": kind, "user_id": "campaign"}
        answer = requests.post(f"{stack.shim}/jobs", json=payload, timeout=15)
        assert answer.status_code == 202, answer.text
        names.append(name)
        if (number + 1) % JOBS_PER_KILL == 0:
            _wait_until_few_are_left(stack, names)
            family = chance.choice(("sdxl", "wan", "chat"))
            killed = stack.process(chance.choice((family, f"{family} child")))
            if killed is not None:
                print_note(f"{number + 1:4} jobs, killing a process of {family}")
                kills += 1
                killed.kill()
                psutil.wait_procs([killed], timeout=5)
    return names, kills


def _wait_until_few_are_left(stack: Stack, names: list[str]) -> None:
    """Wait until fewer jobs than are submitted between two kills have not ended."""

    def few() -> bool:
        return sum(not record.finished for record in stack.ledger.records(names)) < JOBS_PER_KILL

    wait_until(few, within_s=ENDED_S, what="jobs to end")


def _wait_for_ends(stack: Stack, names: list[str]) -> list[str]:
    """Wait until all jobs have ended; returns those that have not."""

    def unfinished() -> list[str]:
        finished = {record.job_id for record in stack.ledger.records(names) if record.finished}
        return [name for name in names if name not in finished]

    deadline = time.monotonic() + ENDED_S
    while (left := unfinished()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@contextmanager
def _foreign_program(folder: Path, card: str, chance: random.Random) -> Iterator[None]:
    """A program that takes and frees memory of the card now and then."""
    device = EmulatedDevice(EmulatedSpec.parse(card), folder / "emulated-gpus", worker_id="foreign")
    stopped, sizes = threading.Event(), random.Random(chance.random())

    def work() -> None:
        while not stopped.wait(sizes.uniform(0.2, 1.0)):
            device.release("foreign")
            device.allocate("foreign", sizes.randrange(FOREIGN_MIB))

    with _in_background(work, stopped):
        yield


@contextmanager
def _waits(ledger: Ledger) -> Iterator[dict[str, float]]:
    """The longest time that each wait for memory has lasted (seconds), by owner and beginning."""
    longest: dict[str, float] = {}
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.1):
            for device in ledger.devices():
                memory = ledger.device_memory(device)
                for wait in memory.waits:
                    longest[f"{wait.owner} {wait.since}"] = memory.now - wait.since

    with _in_background(work, stopped):
        yield longest


@contextmanager
def _in_background(work: Any, stopped: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500, help="number of jobs")
    parser.add_argument("--part", type=int, help="how many of them run in one installation; default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--turn", type=float, default=4.0, help="length of a turn in seconds")
    parser.add_argument("--folder", type=Path, help="where data and logs are kept; default is nowhere")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        result = run_in_parts(
            folder,
            jobs=arguments.jobs,
            part=arguments.part or arguments.jobs,
            seed=arguments.seed,
            turn_s=arguments.turn,
        )
    if arguments.json:
        print(json.dumps(asdict(result)))
    else:
        for name, value in asdict(result).items():
            print(f"{name:16} {value}")
    return 0 if result.kept else 1


if __name__ == "__main__":
    sys.exit(main())
