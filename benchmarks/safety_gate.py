"""What the safety gate costs, in processor time: texts of 10,000 characters, conversations of 100,000.

Run with `python -m benchmarks.safety_gate`. Each text is judged by a gate that has not met it, alone and with
a word of the kind that makes the gate look for ages too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from ourvidz.errors import PolicyViolation
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.safety.gate import Gate, Terms

TEXT_CHARS = 10_000
CONVERSATION_CHARS = 100_000
REPEATS = 3
TERMS = Terms(
    minor=frozenset(f"blorple{chr(97 + at)}zib" for at in range(26)) | {"wee zibby"},
    sexual=frozenset(f"quuxish{chr(97 + at)}vook" for at in range(26)) | {"vookil lamp"},
)
SEXUAL = "quuxishavook"
SENTENCES = (
    "A lighthouse on a cliff at dusk, long exposure, soft light, 85mm f/1.8.",
    "Two boats drift past the old harbour wall, and a gull follows them.",
    "Describe the river in detail: its colour, its sound, the trees on both banks.",
    "Watercolour of a market square with striped awnings, (sharp focus:1.2).",
)
SCRIPTS = {
    "Cyrillic": (0x430, 0x44F),
    "Arabic": (0x627, 0x64A),
    "Devanagari": (0x905, 0x939),
    "Thai": (0xE01, 0xE30),
    "Hangul": (0xAC00, 0xD7A3),
    "ideographs": (0x4E00, 0x9FFF),
}
PATTERNS = ("\ufdfa", "\u3316", "a\u0300\u0316", "(a:1.1)", "1l!|", "q.u.", "16 to 17 ", "&#117;", "a ", "-")


def prose(chars: int) -> str:
    """English sentences."""
    draw = random.Random(1)
    return " ".join(draw.choices(SENTENCES, k=chars // 60))[:chars]


def of_script(first: int, last: int) -> str:
    """Words of five characters of one script."""
    draw = random.Random(1)
    return "".join(chr(draw.randint(first, last)) if at % 6 else " " for at in range(TEXT_CHARS))


def texts() -> Iterator[tuple[str, str]]:
    """Yield the texts with their names."""
    yield "English", prose(TEXT_CHARS)
    for name, block in SCRIPTS.items():
        yield name, of_script(*block)
    for pattern in PATTERNS:
        yield repr(pattern), (pattern * TEXT_CHARS)[:TEXT_CHARS]


def conversation(sentences: int) -> tuple[Message, ...]:
    """Messages of so many sentences each."""
    draw, messages, count = random.Random(1), list[Message](), 0
    while count < CONVERSATION_CHARS:
        content = " ".join(draw.choices(SENTENCES, k=sentences))
        messages.append(Message(role="user" if len(messages) % 2 == 0 else "assistant", content=content))
        count += len(content)
    return tuple(messages)


def chat(messages: Sequence[Message]) -> ChatJob:
    """A job with these messages."""
    return ChatJob(
        id="a", type="chat_conversation", messages=tuple(messages), max_tokens=9, expected_time=1, seed=1
    )


def check(judged: Sequence[str], gate: Gate) -> None:
    """Judge texts."""
    gate.check(judged)


def check_job(job: ChatJob, gate: Gate) -> None:
    """Judge a job."""
    gate.check_job(job)


def milliseconds(judge: Callable[[Gate], None]) -> float:
    """The least processor time of a few calls, each on a gate without verdicts."""
    least = float("inf")
    for _ in range(REPEATS):
        gate = Gate(TERMS)
        started = time.process_time()
        with suppress(PolicyViolation):
            judge(gate)
        least = min(least, time.process_time() - started)
    return least * 1000


def main() -> None:
    """Print a table."""
    print(f"{'text':16} {'ms':>8} {'with ages, ms':>14}")
    for name, text in texts():
        alone, both = milliseconds(partial(check, [text])), milliseconds(partial(check, [text, SEXUAL]))
        print(f"{name:16} {alone:8.2f} {both:14.2f}")
    for sentences in (1, 5, 50):
        messages = conversation(sentences)
        with_ages = (*messages, Message(role="user", content=SEXUAL))
        alone = milliseconds(partial(check_job, chat(messages)))
        both = milliseconds(partial(check_job, chat(with_ages)))
        print(f"{len(messages):4} messages    {alone:8.2f} {both:14.2f}")


if __name__ == "__main__":
    main()
