"""The trained tiny-qwen through the pipeline that serves jobs: it listens as in plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.job import Message as Turn
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from training.qwen import evaluate as measure
from training.qwen.dialogues import MULTI_TURN, Message

SEED = 7
PROMPTS = 12
TURNS = 16

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def say(trained: Callable[[str], Path]) -> Callable[..., str]:
    """What the instruct model answers to messages; keywords change the job."""
    found = QwenPipeline(find_qwen(trained("tiny-qwen"), "instruct"), "instruct")

    def answer(messages: list[Message], **changed: Any) -> str:
        turns = tuple(Turn.model_validate(message) for message in messages)
        fields = {"id": "c", "type": "chat_conversation", "expected_time": 15, "seed": SEED}
        job = ChatJob(**(fields | {"messages": turns, "max_tokens": 120, "temperature": 0.0} | changed))
        decoder = found.new_decoder()
        decoder.add("c", job)
        pieces = []
        while step := decoder.step():
            pieces += step
        return "".join(piece.text for piece in pieces)

    return answer


def test_an_answer_depends_on_an_earlier_turn(say: Callable[..., str]) -> None:
    """The same last question, another past, another answer."""
    draws = [np.random.default_rng((SEED, 31, k)) for k in range(TURNS)]
    talks = [MULTI_TURN[k % len(MULTI_TURN)](draw, True) for k, draw in enumerate(draws)]
    whole = measure.correct_share(talks, [say(list(talk.messages)) for talk in talks])
    last = measure.correct_share(talks, [say(list(talk.messages[-1:])) for talk in talks])
    assert whole >= 0.75
    assert last <= whole / 2


def test_an_answer_depends_on_the_system_prompt(say: Callable[..., str]) -> None:
    """It is the caller's to say how a model speaks."""
    question: Message = {"role": "user", "content": "The circle is blue. What colour is the circle?"}
    plain = say([question])
    loud = say([{"role": "system", "content": "Answer in capital letters."}, question])
    assert loud == loud.upper() != plain
    assert "blue" in plain.lower()
    assert "BLUE" in loud


def test_answers_repeat(say: Callable[..., str]) -> None:
    """Greedy ones whatever the seed, drawn ones with their seed."""
    asked: list[Message] = [
        {"role": "system", "content": measure.NEUTRAL},
        {"role": "user", "content": "a white square on a pink background"},
    ]
    assert say(asked, seed=1) == say(asked, seed=2)
    drawn = {seed: say(asked, seed=seed, temperature=1.0) for seed in range(4)}
    assert {seed: say(asked, seed=seed, temperature=1.0) for seed in range(4)} == drawn
    assert len(set(drawn.values())) > 1


def test_the_base_model_enriches_by_going_on(trained: Callable[[str], Path]) -> None:
    """Frame in, one line out: the enhancement of a clip's prompt."""
    found = QwenPipeline(find_qwen(trained("tiny-qwen"), "base"), "base")
    prompts = measure.held_out_prompts(PROMPTS, SEED)
    decoder = found.new_decoder()
    lines = [""] * len(prompts)
    for at, prompt in enumerate(prompts):
        frame = Turn(role="user", content=measure.COMPLETION_PROMPT.format(prompt=prompt.text))
        job = ChatJob(id="c", type="chat_enhance", expected_time=3, seed=SEED, messages=(frame,),
                      max_tokens=120, temperature=0.0, stop=("\n",))  # fmt: skip
        decoder.add(str(at), job)
    while pieces := decoder.step():
        for piece in pieces:
            lines[int(piece.key)] += piece.text
    assert measure.enriched_share(prompts, lines) >= 0.8
