"""Latency and throughput of chat over HTTP, compared with the bare model call: single and eight at once.

    python -m benchmarks.chat [--rounds 20] [--tokens 128] [--json]

A request includes HTTP, validation, safety gate, record, message, claim and lease, decoding, the gate
again, every text delta on the event stream, and the commit. The bare call is `generate` of the same
checkpoint in this process. The runs are interleaved, so that other load on the machine affects both.
Decoding is greedy, and all texts have the same length: the checkpoint is a copy of the packaged one without
its end token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch
import transformers

from benchmarks.stack import running_stack
from ourvidz.cli.console import print_note
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.settings import share_processors

CONCURRENCY = 8
PROMPTS = [
    f"a {colour} {shape} on a hill"
    for colour in ("red", "blue", "green", "yellow")
    for shape in ("star", "circle")
]
UNUSED_TOKEN = 1401
"""The token that begins a message: the packaged model never generates it."""


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved runs of each")
    parser.add_argument("--tokens", type=int, default=128, help="length of every text")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    share_processors()
    with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder:
        models = copy_without_end_token(Path(folder) / "models")
        print_note("starting the stack")
        with running_stack(Path(folder) / "state", workers="chat", OURVIDZ_QWEN_MODEL=str(models)) as ready:
            ours, bare = Stack(ready["shim"]), BareModel(models / "instruct")
            results = measure(ours, bare, arguments.rounds, arguments.tokens)
    print_results(results, as_json=arguments.json)


def copy_without_end_token(folder: Path) -> Path:
    """Copy the packaged checkpoint to `folder`, without its end token and without the checksums, which would
    no longer match."""
    shutil.copytree(PACKAGED / "tiny-qwen", folder, ignore=shutil.ignore_patterns("SHA256SUMS"))
    for path in folder.glob("*/*config.json"):
        config = json.loads(path.read_text())
        if "eos_token_id" in config:
            path.write_text(json.dumps(config | {"eos_token_id": UNUSED_TOKEN}))
    return folder


class Stack:
    """The running stack, called over HTTP."""

    def __init__(self, shim: str) -> None:
        self._chat = f"{shim}/chat"
        self._pool = ThreadPoolExecutor(CONCURRENCY)
        self._sessions = [requests.Session() for _ in PROMPTS]

    def first_token(self, tokens: int) -> float:
        """Seconds from the request to the first text delta of a streamed response."""
        started = time.perf_counter()
        body = self._body(0, tokens) | {"stream": True}
        with self._sessions[0].post(self._chat, json=body, stream=True, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith(b"data:"):
                    return time.perf_counter() - started
        raise RuntimeError("the stream was empty")

    def in_sequence(self, tokens: int) -> None:
        """Request all prompts one after the other."""
        for number in range(CONCURRENCY):
            self._request(number, tokens)

    def concurrently(self, tokens: int) -> None:
        """Request all prompts at the same time."""
        list(self._pool.map(lambda number: self._request(number, tokens), range(CONCURRENCY)))

    def _request(self, number: int, tokens: int) -> None:
        """Request the text of prompt `number`. Raises `RuntimeError` if its length is not `tokens`."""
        response = self._sessions[number].post(self._chat, json=self._body(number, tokens), timeout=60)
        response.raise_for_status()
        generated = response.json()["tokens_generated"]
        if generated != tokens:
            raise RuntimeError(f"{generated} tokens instead of {tokens}")

    def _body(self, number: int, tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": PROMPTS[number]}]
        return {"messages": messages, "max_tokens": tokens, "temperature": 0}


class BareModel:
    """`generate` of transformers with the same checkpoint, in this process."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        # A step of so small a model is shorter than the time to wake up more threads.
        torch.set_num_threads(1)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()

    def first_token(self, _tokens: int) -> float:
        """Seconds that one generated token takes."""
        started = time.perf_counter()
        self._generate(PROMPTS[:1], 1)
        return time.perf_counter() - started

    def in_sequence(self, tokens: int) -> None:
        """Generate the texts of all prompts, one call each."""
        for prompt in PROMPTS:
            self._generate([prompt], tokens)

    def concurrently(self, tokens: int) -> None:
        """Generate the texts of all prompts as one batch."""
        self._generate(PROMPTS, tokens)

    def _generate(self, prompts: list[str], tokens: int) -> None:
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = self._tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            self._model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)


def measure(ours: Stack, bare: BareModel, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Medians of both systems: milliseconds to the first token, tokens a second in sequence and
    concurrently."""
    systems: dict[str, Stack | BareModel] = {"OurVidz, over HTTP": ours, "bare generate": bare}
    for system in systems.values():
        system.concurrently(tokens)
    first_token_s: dict[str, list[float]] = {name: [] for name in systems}
    sequence_s: dict[str, list[float]] = {name: [] for name in systems}
    concurrent_s: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds):
        print_note(f"round {number + 1} of {rounds}")
        for name, system in systems.items():
            first_token_s[name].append(system.first_token(tokens))
            sequence_s[name].append(seconds(system.in_sequence, tokens))
            concurrent_s[name].append(seconds(system.concurrently, tokens))
    total_tokens = CONCURRENCY * tokens
    return {
        name: {
            "first token, ms": statistics.median(first_token_s[name]) * 1000,
            "in sequence, tokens/s": total_tokens / statistics.median(sequence_s[name]),
            f"{CONCURRENCY} at once, tokens/s": total_tokens / statistics.median(concurrent_s[name]),
            "at once ÷ in sequence": statistics.median(sequence_s[name])
            / statistics.median(concurrent_s[name]),
        }
        for name in systems
    }


def seconds(run: Callable[[int], None], tokens: int) -> float:
    """The seconds that `run(tokens)` takes."""
    started = time.perf_counter()
    run(tokens)
    return time.perf_counter() - started


def print_results(results: dict[str, dict[str, float]], *, as_json: bool) -> None:
    """Print one row for each system."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    columns = list(next(iter(results.values())))
    print(f"{'':22}" + "".join(f"{column:>24}" for column in columns))
    for name, row in results.items():
        print(f"{name:22}" + "".join(f"{row[column]:24.1f}" for column in columns))


if __name__ == "__main__":
    main()
