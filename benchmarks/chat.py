"""What an answer costs over HTTP beside the bare model call, alone and eight at once, in one run.

    python -m benchmarks.chat [--rounds 20] [--tokens 128] [--json]

Ours goes the whole way: HTTP, validation, safety gate, record, message, claim and lease, decoding, the gate
again, every piece of text on the event stream, commit. The bare call is `generate` of the same checkpoint in
this process. They take turns, so that what else the machine does hits both. All texts are greedy and of the
same length: the checkpoint is a copy of the packaged one whose end token has been taken away.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch
import transformers

from benchmarks.stack import running
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.settings import share_processors

AT_ONCE = 8
PROMPTS = [
    f"a {colour} {shape} on a hill"
    for colour in ("red", "blue", "green", "yellow")
    for shape in ("star", "circle")
]
NEVER = 1401
"""The marker that begins a turn: no answer of the packaged model has it."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved runs of each")
    parser.add_argument("--tokens", type=int, default=128, help="length of every text")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    share_processors()
    with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder:
        models = endless(Path(folder) / "models")
        say("starting the stack")
        with running(Path(folder) / "state", workers="chat", OURVIDZ_QWEN_MODEL=str(models)) as ready:
            found = measure(Ours(ready["shim"]), Bare(models / "instruct"), asked.rounds, asked.tokens)
    report(found, as_json=asked.json)


def endless(folder: Path) -> Path:
    """The packaged checkpoint, but for its end token and the checksums that this would break."""
    shutil.copytree(PACKAGED / "tiny-qwen", folder, ignore=shutil.ignore_patterns("SHA256SUMS"))
    for path in folder.glob("*/*config.json"):
        config = json.loads(path.read_text())
        if "eos_token_id" in config:
            path.write_text(json.dumps(config | {"eos_token_id": NEVER}))
    return folder


class Ours:
    """The running stack, as a caller sees it."""

    def __init__(self, shim: str) -> None:
        self._chat = f"{shim}/chat"
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._sessions = [requests.Session() for _ in PROMPTS]

    def first_token(self, tokens: int) -> float:
        """Seconds from the request to the first piece of a streamed answer."""
        started = time.perf_counter()
        body = self._body(0, tokens) | {"stream": True}
        with self._sessions[0].post(self._chat, json=body, stream=True, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    return time.perf_counter() - started
        raise RuntimeError("the stream was empty")

    def one_after_the_other(self, tokens: int) -> None:
        """Every prompt, each when the last is answered."""
        for number in range(AT_ONCE):
            self._ask(number, tokens)

    def at_once(self, tokens: int) -> None:
        """Every prompt at the same time."""
        list(self._pool.map(lambda number: self._ask(number, tokens), range(AT_ONCE)))

    def _ask(self, number: int, tokens: int) -> None:
        answer = self._sessions[number].post(self._chat, json=self._body(number, tokens), timeout=60)
        answer.raise_for_status()
        made = answer.json()["tokens_generated"]
        if made != tokens:
            raise RuntimeError(f"{made} tokens instead of {tokens}")

    def _body(self, number: int, tokens: int) -> dict[str, Any]:
        said = [{"role": "user", "content": PROMPTS[number]}]
        return {"messages": said, "max_tokens": tokens, "temperature": 0}


class Bare:
    """The same checkpoint and transformers' own `generate`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        # More would only wait for each other: a step of so small a model is over before they have woken up.
        torch.set_num_threads(1)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()

    def first_token(self, _tokens: int) -> float:
        """Seconds for one token."""
        started = time.perf_counter()
        self._generate(PROMPTS[:1], 1)
        return time.perf_counter() - started

    def one_after_the_other(self, tokens: int) -> None:
        """A call a prompt."""
        for prompt in PROMPTS:
            self._generate([prompt], tokens)

    def at_once(self, tokens: int) -> None:
        """All prompts as one batch."""
        self._generate(PROMPTS, tokens)

    def _generate(self, prompts: list[str], tokens: int) -> None:
        said = [[{"role": "user", "content": prompt}] for prompt in prompts]
        given = self._tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            self._model.generate(**given, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)


def measure(ours: Ours, bare: Bare, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Medians of both: milliseconds to the first token, tokens a second in turn and at once."""
    contenders: dict[str, Ours | Bare] = {"OurVidz, over HTTP": ours, "bare generate": bare}
    for contender in contenders.values():
        contender.at_once(tokens)
    first: dict[str, list[float]] = {name: [] for name in contenders}
    in_turn: dict[str, list[float]] = {name: [] for name in contenders}
    at_once: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, contender in contenders.items():
            first[name].append(contender.first_token(tokens))
            in_turn[name].append(seconds(contender.one_after_the_other, tokens))
            at_once[name].append(seconds(contender.at_once, tokens))
    made = AT_ONCE * tokens
    return {
        name: {
            "first token, ms": statistics.median(first[name]) * 1000,
            "in turn, tokens/s": made / statistics.median(in_turn[name]),
            f"{AT_ONCE} at once, tokens/s": made / statistics.median(at_once[name]),
            "at once ÷ in turn": statistics.median(in_turn[name]) / statistics.median(at_once[name]),
        }
        for name in contenders
    }


def seconds(run: Callable[[int], None], tokens: int) -> float:
    """How long it takes."""
    started = time.perf_counter()
    run(tokens)
    return time.perf_counter() - started


def report(found: dict[str, dict[str, float]], *, as_json: bool) -> None:
    """One row each."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    columns = list(next(iter(found.values())))
    print(f"{'':22}" + "".join(f"{column:>24}" for column in columns))
    for name, row in found.items():
        print(f"{name:22}" + "".join(f"{row[column]:24.1f}" for column in columns))


def say(what: str) -> None:
    """Progress, out of the way of the numbers."""
    print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
