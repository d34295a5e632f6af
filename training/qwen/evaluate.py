"""The last stage: what both exported variants say, measured by counting words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.qwen.corpus import CONTINUED, REQUESTS, Text, continued, plain_text
from training.qwen.prompts import (
    ADDED_WORDS,
    Prompt,
    added_words,
    held_out_prompt,
    kept,
    unseen_prompt,
)
from training.qwen.speaker import Speaker
from training.qwen.talk import MULTI_TURN, STYLES, Message, Talk, random_talk, right, styled
from training.qwen.words import words_of
from training.shapes import SHAPES
from training.world import COLOURS

STAGE = 4
NEUTRAL = (
    "You improve prompts for pictures and clips. Keep what they say and add plain visual detail. "
    "Answer with the improved prompt alone."
)
OTHER = "As a film maker, turn the idea you are given into one vivid line. Be neutral and precise."
"""A system prompt whose sentences no training conversation has."""

TEMPERATURE = 0.7
SHOWN = 10
"""How many failures are kept to look at."""

Tell = Callable[[str], None]


def evaluate(folder: Path, *, count: int, seed: int, tell: Tell) -> dict[str, Any]:
    """Every measure of the model card, by name. Shares run from 0 to 1."""
    torch.manual_seed(seed)
    instruct, base = Speaker(folder / "instruct"), Speaker(folder / "base")
    found: dict[str, Any] = {"prompts": count}
    for part in (
        enriching(instruct, count, seed),
        conversing(instruct, count, seed),
        continuing(base, count, seed),
        {"load seconds": instruct.load_s, "seconds for 64 tokens": instruct.seconds("a red circle")},
    ):
        found |= part
        for name, value in part.items():
            tell(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    return found


def enriching(speaker: Speaker, count: int, seed: int) -> dict[str, Any]:
    """The instruct model, told in several ways to enrich prompts of held-out combinations."""
    prompts = held_out_prompts(count, seed)
    some = prompts[: max(count // 2, 1)]
    answers = speaker.answers([_told(prompt, NEUTRAL) for prompt in prompts])
    unseen = [unseen_prompt(np.random.default_rng((seed, STAGE, 1, k))) for k in range(len(some))]
    return {
        "enriched": enriched_share(prompts, answers),
        "enriched without a stray colour or shape": stray_free_share(prompts, answers),
        "lost": [
            {"prompt": prompt.text, "answer": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
            if not is_enriched(prompt.text, answer)
        ][:SHOWN],
        "enriched at temperature 0.7": enriched_share(
            some, speaker.answers([_told(one, NEUTRAL) for one in some], temperature=TEMPERATURE)
        ),
        "enriched under another system prompt": enriched_share(
            some, speaker.answers([_told(one, OTHER) for one in some])
        ),
        "enriched by request": enriched_share(
            some, speaker.answers([_told(Prompt(REQUESTS[0].format(one.text), one.kind)) for one in some])
        ),
        "enriched with unseen nouns": enriched_share(
            unseen, speaker.answers([_told(one, NEUTRAL) for one in unseen])
        ),
    }


def conversing(speaker: Speaker, count: int, seed: int) -> dict[str, Any]:
    """The instruct model: its answers, their dependence on earlier turns and on the system prompt."""
    talks = [random_talk(np.random.default_rng((seed, STAGE, 2, k)), held_out=True) for k in range(count)]
    draws = (np.random.default_rng((seed, STAGE, 3, k)) for k in range(count))
    turns = [MULTI_TURN[k % len(MULTI_TURN)](draw, True) for k, draw in enumerate(draws)]
    answers = speaker.answers([talk.messages for talk in talks])
    return {
        "answers right": right_share(talks, answers),
        "answered wrong": [
            {"asked": talk.messages[-1]["content"], "answer": answer, "right": talk.said}
            for talk, answer in zip(talks, answers, strict=True)
            if not right(talk, answer)
        ][:SHOWN],
        "answers right that depend on an earlier turn": right_share(
            turns, speaker.answers([talk.messages for talk in turns])
        ),
        "the same without the earlier turns": right_share(
            turns, speaker.answers([talk.messages[-1:] for talk in turns])
        ),
    } | {f"answers {name}": share for name, share in style_shares(speaker, talks[: count // 4 or 1]).items()}


def style_shares(speaker: Speaker, talks: Sequence[Talk]) -> dict[str, float]:
    """How often the same questions are answered as the system prompt says."""
    found = {}
    for name, style in STYLES.items():
        answers = speaker.answers([styled(talk, name).messages for talk in talks])
        found[f"in style: {name}"] = _share([style.fits(answer) for answer in answers])
    return found


def continuing(speaker: Speaker, count: int, seed: int) -> dict[str, Any]:
    """The base model: held-out captions that are cut in half, held-out text, prompts to enrich."""
    prompts = held_out_prompts(count, seed)
    some = prompts[: max(count // 2, 1)]
    halves = [" ".join(one.text.split()[: max(len(one.text.split()) // 2, 1)]) for one in prompts]
    known = known_words(seed)
    goes_on = speaker.completions(halves, longest=40)
    lines = speaker.completions([CONTINUED.format(prompt=one.text) for one in some])
    losses = [speaker.surprise(Text("", one.text)) for one in prompts]
    draw = np.random.default_rng((seed, STAGE, 4))
    copied = [speaker.surprise(continued(one, draw)) for one in some]
    return {
        "continued in known words": _share(
            [bool(words_of(text)) and set(words_of(text)) <= known for text in goes_on]
        ),
        "perplexity of held-out captions": _perplexity(losses),
        "perplexity of enriched prompts after their prompts": _perplexity(copied),
        "enriched by continuation": enriched_share(some, [line.split("\n")[0] for line in lines]),
    }


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts of combinations that no training text has."""
    return [held_out_prompt(np.random.default_rng((seed, STAGE, k))) for k in range(count)]


def is_enriched(prompt: str, answer: str) -> bool:
    """Whether the answer keeps every word that counts and adds enough."""
    return kept(prompt, answer) and added_words(prompt, answer) >= ADDED_WORDS


def enriched_share(prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
    """How many answers are their prompts, enriched."""
    return _share([is_enriched(one.text, answer) for one, answer in zip(prompts, answers, strict=True)])


def stray_free_share(prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
    """How many answers name no colour and no shape that the prompt does not name."""
    named = {*COLOURS, *SHAPES}
    return _share(
        [
            not named & (set(words_of(answer)) - set(words_of(one.text)))
            for one, answer in zip(prompts, answers, strict=True)
        ]
    )


def right_share(talks: Sequence[Talk], answers: Sequence[str]) -> float:
    """How many questions are answered right."""
    return _share([right(talk, answer) for talk, answer in zip(talks, answers, strict=True)])


def known_words(seed: int, texts: int = 4000) -> set[str]:
    """The words of the training texts."""
    draw = np.random.default_rng((seed, STAGE, 5))
    return {word for _ in range(texts) for word in words_of(plain_text(draw).whole)}


def _told(prompt: Prompt, system: str = "") -> list[Message]:
    asked = {"role": "user", "content": prompt.text}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _perplexity(losses: Sequence[tuple[float, int]]) -> float:
    """The geometric mean of one over the probability of a token."""
    return exp(sum(lost for lost, _ in losses) / sum(tokens for _, tokens in losses))


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
