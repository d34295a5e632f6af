"""Evaluation of both exported variants by comparing words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.qwen.answer_styles import STYLES
from training.qwen.corpus import COMPLETION_PROMPT, REQUESTS, Text, enrichment_text, plain_text
from training.qwen.dialogues import (
    MULTI_TURN,
    Dialogue,
    Message,
    in_style,
    is_correct,
    random_dialogue,
)
from training.qwen.everyday_prompts import EVERYDAY_PROMPTS
from training.qwen.generation import TextGenerator
from training.qwen.motion_prompts import inflected_prompts
from training.qwen.prompts import (
    ADDED_WORDS,
    Prompt,
    added_words,
    held_out_prompt,
    keeps_content,
    unseen_prompt,
)
from training.qwen.verbs import MOTION_VERBS, SIZE_VERBS, UNSEEN_VERBS
from training.qwen.vocabulary import words_of
from training.scenes import COLOURS
from training.shapes import SHAPES

STAGE = 4
INSTRUCTION = (
    "You improve prompts for pictures and clips. Keep what they say and describe light, texture and motion."
)
"""The worker's default instruction for the enhancement of prompts of clips."""
NEUTRAL = (
    "You improve prompts for pictures and clips. Keep what they say and add plain visual detail. "
    "Answer with the improved prompt alone."
)
OTHER = "As a film maker, turn the idea you are given into one vivid line. Be neutral and precise."
"""A system prompt whose sentences are in no training conversation."""

TEMPERATURE = 0.7
EXAMPLES = 10
"""The number of failed examples that scores.json lists for a measure."""

Report = Callable[[str], None]
Scores = dict[str, Any]


def evaluate(folder: Path, *, count: int, seed: int, report: Report) -> Scores:
    """All measures of the model card by name, each on about `count` examples. Proportions are 0 to 1."""
    torch.manual_seed(seed)
    instruct, base = TextGenerator(folder / "instruct"), TextGenerator(folder / "base")
    scores: Scores = {"prompts": count}
    for part in (
        evaluate_enrichment(instruct, count, seed),
        evaluate_motion(instruct, base, count, seed),
        evaluate_dialogues(instruct, count, seed),
        evaluate_completion(base, count, seed),
        {
            "load seconds": instruct.load_s,
            "seconds for 64 tokens": instruct.generation_seconds("a red circle"),
        },
    ):
        scores |= part
        for name, value in part.items():
            report(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    return scores


def evaluate_enrichment(model: TextGenerator, count: int, seed: int) -> Scores:
    """The instruct model on held-out prompts, asked to enrich in several ways."""
    prompts = held_out_prompts(count, seed)
    half = prompts[: max(count // 2, 1)]
    answers = model.chat([_messages(prompt.text, NEUTRAL) for prompt in prompts])
    unseen = [unseen_prompt(np.random.default_rng((seed, STAGE, 1, k))) for k in range(len(half))]
    return {
        "enriched": enriched_share(prompts, answers),
        "enriched without a stray colour or shape": stray_free_share(prompts, answers),
        "lost": [
            {"prompt": prompt.text, "answer": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
            if not is_enriched(prompt.text, answer)
        ][:EXAMPLES],
        "enriched at temperature 0.7": enriched_share(
            half, model.chat([_messages(prompt.text, NEUTRAL) for prompt in half], temperature=TEMPERATURE)
        ),
        "enriched under another system prompt": enriched_share(
            half, model.chat([_messages(prompt.text, OTHER) for prompt in half])
        ),
        "enriched by request": enriched_share(
            half, model.chat([_messages(REQUESTS[0].format(prompt.text)) for prompt in half])
        ),
        "enriched with unseen nouns": enriched_share(
            unseen, model.chat([_messages(prompt.text, NEUTRAL) for prompt in unseen])
        ),
    }


def evaluate_motion(instruct: TextGenerator, base: TextGenerator, count: int, seed: int) -> Scores:
    """Both models on held-out prompts with every inflection of the verbs of motion, and on verbs and
    sentences that no training text has: how often every content word is kept.

    The base model gets the worker's default instruction, and once its default sampling.
    """
    inflected = inflection_prompts(count, seed)
    unseen = list(inflected_prompts(UNSEEN_VERBS, (seed, STAGE, 8)))[:count]
    completions = complete_prompts(base, inflected)
    return {
        "prompts with inflected verbs": len(inflected),
        "inflected verbs kept, base": kept_share(inflected, completions),
        "inflected verbs lost": [
            {"prompt": prompt, "completion": text}
            for prompt, text in zip(inflected, completions, strict=True)
            if not keeps_content(prompt, text)
        ][:EXAMPLES],
        "inflected verbs kept, base at temperature 0.7": kept_share(
            inflected, complete_prompts(base, inflected, temperature=TEMPERATURE)
        ),
        "inflected verbs kept, instruct": kept_share(
            inflected, instruct.chat([_messages(text, NEUTRAL) for text in inflected])
        ),
        "unseen verbs kept, base": kept_share(unseen, complete_prompts(base, unseen)),
        "unseen verbs kept, instruct": kept_share(
            unseen, instruct.chat([_messages(text, NEUTRAL) for text in unseen])
        ),
        "everyday prompts": len(EVERYDAY_PROMPTS),
        "everyday prompts kept, base": kept_share(EVERYDAY_PROMPTS, complete_prompts(base, EVERYDAY_PROMPTS)),
        "everyday prompts kept, instruct": kept_share(
            EVERYDAY_PROMPTS, instruct.chat([_messages(text, NEUTRAL) for text in EVERYDAY_PROMPTS])
        ),
    }


def evaluate_dialogues(model: TextGenerator, count: int, seed: int) -> Scores:
    """The instruct model: correct answers, their dependence on earlier messages and on the system prompt."""
    dialogues = [
        random_dialogue(np.random.default_rng((seed, STAGE, 2, k)), held_out=True) for k in range(count)
    ]
    generators = (np.random.default_rng((seed, STAGE, 3, k)) for k in range(count))
    multi_turn = [MULTI_TURN[k % len(MULTI_TURN)](rng, True) for k, rng in enumerate(generators)]
    answers = model.chat([dialogue.messages for dialogue in dialogues])
    return {
        "answers right": correct_share(dialogues, answers),
        "answered wrong": [
            {"question": dialogue.messages[-1]["content"], "answer": answer, "expected": dialogue.answer_text}
            for dialogue, answer in zip(dialogues, answers, strict=True)
            if not is_correct(dialogue, answer)
        ][:EXAMPLES],
        "answers right that depend on an earlier turn": correct_share(
            multi_turn, model.chat([dialogue.messages for dialogue in multi_turn])
        ),
        "the same without the earlier turns": correct_share(
            multi_turn, model.chat([dialogue.messages[-1:] for dialogue in multi_turn])
        ),
        **style_shares(model, dialogues[: count // 4 or 1]),
    }


def style_shares(model: TextGenerator, dialogues: Sequence[Dialogue]) -> Scores:
    """How often the answers are in the style that the system prompt asks for, by style."""
    shares = {}
    for name, style in STYLES.items():
        answers = model.chat([in_style(dialogue, name).messages for dialogue in dialogues])
        shares[f"answers in style: {name}"] = _share([style.matches(answer) for answer in answers])
    return shares


def evaluate_completion(model: TextGenerator, count: int, seed: int) -> Scores:
    """The base model: completion of the first half of held-out captions, perplexity, enrichment."""
    prompts = held_out_prompts(count, seed)
    half = prompts[: max(count // 2, 1)]
    beginnings = [
        " ".join(prompt.text.split()[: max(len(prompt.text.split()) // 2, 1)]) for prompt in prompts
    ]
    known = known_words(seed)
    continuations = model.complete(beginnings, max_tokens=40)
    lines = model.complete([COMPLETION_PROMPT.format(prompt=prompt.text) for prompt in half])
    likelihoods = [model.negative_log_likelihood(Text("", prompt.text)) for prompt in prompts]
    rng = np.random.default_rng((seed, STAGE, 4))
    copies = [model.negative_log_likelihood(enrichment_text(prompt, rng)) for prompt in half]
    return {
        "continued in known words": _share(
            [bool(words_of(text)) and set(words_of(text)) <= known for text in continuations]
        ),
        "perplexity of held-out captions": _perplexity(likelihoods),
        "perplexity of enriched prompts after their prompts": _perplexity(copies),
        "enriched by continuation": enriched_share(half, [line.split("\n")[0] for line in lines]),
    }


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts of combinations that no training text has."""
    return [held_out_prompt(np.random.default_rng((seed, STAGE, k))) for k in range(count)]


def inflection_prompts(count: int, seed: int) -> list[str]:
    """`count` held-out prompts, evenly spaced among those with every form of every verb of motion."""
    prompts = list(inflected_prompts((*MOTION_VERBS, *SIZE_VERBS), (seed, STAGE, 7)))
    return [prompts[k * len(prompts) // count] for k in range(min(count, len(prompts)))]


def complete_prompts(model: TextGenerator, prompts: Sequence[str], *, temperature: float = 0.0) -> list[str]:
    """The lines that the base model completes prompts with, below the worker's default instruction."""
    texts = [f"{INSTRUCTION}\n\n{COMPLETION_PROMPT.format(prompt=prompt)}" for prompt in prompts]
    return [text.split("\n")[0] for text in model.complete(texts, temperature=temperature)]


def is_enriched(prompt: str, answer: str) -> bool:
    """Whether the answer keeps the content of the prompt and adds at least `ADDED_WORDS` words."""
    return keeps_content(prompt, answer) and added_words(prompt, answer) >= ADDED_WORDS


def enriched_share(prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
    """The proportion of answers that are enriched forms of their prompts."""
    return _share([is_enriched(prompt.text, answer) for prompt, answer in zip(prompts, answers, strict=True)])


def kept_share(prompts: Sequence[str], answers: Sequence[str]) -> float:
    """The proportion of answers that keep every content word of their prompts."""
    return _share([keeps_content(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])


def stray_free_share(prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
    """The proportion of answers that name no colour and no shape in addition to the prompt's."""
    names = {*COLOURS, *SHAPES}
    return _share(
        [
            not names & (set(words_of(answer)) - set(words_of(prompt.text)))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    )


def correct_share(dialogues: Sequence[Dialogue], answers: Sequence[str]) -> float:
    """The proportion of correct answers."""
    return _share([is_correct(dialogue, answer) for dialogue, answer in zip(dialogues, answers, strict=True)])


def known_words(seed: int, texts: int = 4000) -> set[str]:
    """The words of a sample of the base corpus."""
    rng = np.random.default_rng((seed, STAGE, 5))
    return {word for _ in range(texts) for word in words_of(plain_text(rng).full)}


def _messages(prompt: str, system: str = "") -> list[Message]:
    user = {"role": "user", "content": prompt}
    return [{"role": "system", "content": system}, user] if system else [user]


def _perplexity(likelihoods: Sequence[tuple[float, int]]) -> float:
    """The exponential of the mean negative log-likelihood of a token."""
    return exp(sum(nats for nats, _ in likelihoods) / sum(tokens for _, tokens in likelihoods))


def _share(flags: Sequence[bool]) -> float:
    """The proportion of true flags."""
    return sum(flags) / len(flags)
