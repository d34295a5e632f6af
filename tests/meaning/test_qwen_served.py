"""The trained tiny-qwen in the pipeline that serves jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.job import Message as JobMessage
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from training.qwen import evaluate
from training.qwen.dialogues import MULTI_TURN, Message

SEED = 7
PROMPTS = 12
DIALOGUES = 16

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def chat(trained: Callable[[str], Path]) -> Callable[..., str]:
    """The answer of the instruct model; keyword arguments are fields of the job."""
    pipeline = QwenPipeline(find_qwen(trained("tiny-qwen"), "instruct"), "instruct")

    def answer(messages: list[Message], **options: Any) -> str:
        job_messages = tuple(JobMessage.model_validate(message) for message in messages)
        fields = {"id": "c", "type": "chat_conversation", "expected_time": 15, "seed": SEED}
        job = ChatJob(
            **(fields | {"messages": job_messages, "max_tokens": 120, "temperature": 0.0} | options)
        )
        decoder = pipeline.new_decoder()
        decoder.add("c", job)
        pieces = []
        while step := decoder.step():
            pieces += step
        return "".join(piece.text for piece in pieces)

    return answer


def test_an_answer_depends_on_an_earlier_message(chat: Callable[..., str]) -> None:
    """The same question has different answers after different messages."""
    generators = [np.random.default_rng((SEED, 31, k)) for k in range(DIALOGUES)]
    dialogues = [MULTI_TURN[k % len(MULTI_TURN)](rng, True) for k, rng in enumerate(generators)]
    complete = evaluate.correct_share(dialogues, [chat(list(one.messages)) for one in dialogues])
    last_only = evaluate.correct_share(dialogues, [chat(list(one.messages[-1:])) for one in dialogues])
    assert complete >= 0.75
    assert last_only <= complete / 2


def test_an_answer_depends_on_the_system_prompt(chat: Callable[..., str]) -> None:
    """Callers choose the style of the answers."""
    question: Message = {"role": "user", "content": "The circle is blue. What colour is the circle?"}
    plain = chat([question])
    capitals = chat([{"role": "system", "content": "Answer in capital letters."}, question])
    assert capitals == capitals.upper() != plain
    assert "blue" in plain.lower()
    assert "BLUE" in capitals


def test_answers_are_reproducible(chat: Callable[..., str]) -> None:
    """Greedy answers are equal for all seeds, sampled ones for equal seeds."""
    messages: list[Message] = [
        {"role": "system", "content": evaluate.NEUTRAL},
        {"role": "user", "content": "a white square on a pink background"},
    ]
    assert chat(messages, seed=1) == chat(messages, seed=2)
    sampled = {seed: chat(messages, seed=seed, temperature=1.0) for seed in range(4)}
    assert {seed: chat(messages, seed=seed, temperature=1.0) for seed in range(4)} == sampled
    assert len(set(sampled.values())) > 1


def test_the_base_model_enriches_by_completion(trained: Callable[[str], Path]) -> None:
    """The worker enhances prompts of clips in this way."""
    pipeline = QwenPipeline(find_qwen(trained("tiny-qwen"), "base"), "base")
    prompts = evaluate.held_out_prompts(PROMPTS, SEED)
    decoder = pipeline.new_decoder()
    lines = [""] * len(prompts)
    for index, prompt in enumerate(prompts):
        message = JobMessage(role="user", content=evaluate.COMPLETION_PROMPT.format(prompt=prompt.text))
        job = ChatJob(id="c", type="chat_enhance", expected_time=3, seed=SEED, messages=(message,),
                      max_tokens=120, temperature=0.0, stop=("\n",))  # fmt: skip
        decoder.add(str(index), job)
    while pieces := decoder.step():
        for piece in pieces:
            lines[int(piece.key)] += piece.text
    assert evaluate.enriched_share(prompts, lines) >= 0.8
