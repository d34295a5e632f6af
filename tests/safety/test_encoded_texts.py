"""What the text encoders of a job read is what the gate judges: a claim about all ways to split a word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz.errors import PolicyViolation
from ourvidz.jobs.job import ChatJob, ImageJob, Job, Message, VideoJob
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.prompts.cleaning import clean_prompt
from ourvidz.prompts.conversations import plain_conversation
from ourvidz.prompts.encoder_texts import checked_by, continued_texts, encoder_texts, hand_over
from ourvidz.prompts.encoders import read_encoders
from ourvidz.prompts.tokens import WORD_END
from ourvidz.prompts.weights import parse_prompt
from ourvidz.safety.gate import Gate, Terms

GATE = Gate(Terms(minor=frozenset({"apple", "wee pear"}), sexual=frozenset({"triangle", "red oval"})))
BASE = {"id": "a", "user_id": "u", "expected_time": 1, "seed": 1}
MEDIA = {**BASE, "steps": 1, "guidance_scale": 1, "width": 64, "height": 64}
TOKENIZERS = read_encoders(PACKAGED / "tiny-sdxl").tokenizers
APART = " / / / "
"""Stands between two texts that are encoded apart: too much for a phrase."""
FAST = settings(deadline=None, max_examples=150)


def is_refused(job: Job, *added: str) -> bool:
    try:
        GATE.check_job(job, *added)
    except PolicyViolation:
        return True
    return False


def image(
    prompt: str, negative: str | None = None, weights: str | None = None, *, on: bool = True
) -> ImageJob:
    return ImageJob(
        type="sdxl_image_fast",
        prompt=prompt,
        negative_prompt=negative,
        compel_enabled=on,
        compel_weights=weights,
        **MEDIA,
    )


def video(prompt: str, negative: str | None = None) -> VideoJob:
    return VideoJob(type="image_fast", prompt=prompt, negative_prompt=negative, frames=1, **MEDIA)


def chat(*contents: str, model: str = "qwen_base") -> ChatJob:
    messages = tuple(Message(role="user", content=content) for content in contents)
    return ChatJob(type="chat_conversation", messages=messages, max_tokens=9, model=model, **BASE)


def read_by_clip(job: ImageJob) -> str:
    """The words in the tokens of both prompts, as the two tokenizers of a checkpoint make them."""
    parsed = parse_prompt(job.prompt, job.compel_weights, weighted=job.compel_enabled)
    negative = parse_prompt(job.negative_prompt or "", weighted=parsed.strategy == "compel")
    chunks = (
        chunk.tokens
        for prompt in (parsed.prompt, negative.prompt)
        for tokenizer in TOKENIZERS
        for chunk in tokenizer.chunks(prompt)
    )
    return APART.join("".join(tokens).replace(WORD_END, " ") for tokens in chunks)


def holds_terms(texts: Iterable[str]) -> bool:
    """Whether the plain texts, without any disguise, hold a stand-in term of each kind."""
    text = APART.join(texts).lower()
    return all(
        re.search(rf"(?<![a-z])(?:{kind})(?![a-z])", text)
        for kind in (r"apple|wee\W{1,3}pear", r"triangle|red\W{1,3}oval")
    )


PIECE = st.sampled_from(
    [
        *(
            "{}",
            "({})",
            "[{}]",
            "(({}))",
            "({}:1)",
            "({}:1.3)",
            "({}:0.7)",
            "[({}:1.1)]",
            "({}:0)",
            "{}\\(",
            "\\[{}",
        ),
        *(
            "(:1.2){}",
            "[]{}",
            "{}()",
            "{} BREAK ",
            " BREAK {}",
            "{} AND ",
            "<lora:{}:0.8>",
            "{}<lora:x:1>",
            "{}&shy;",
        ),
        *("&#65;{}", "{}\u200b", "{},", "({}", "{})", "{}:1)", "BREAK{}", "({} BREAK:1.2)", "(BREAK:1.3){}"),
    ]
)


@st.composite
def split_terms(draw: st.DrawFn) -> str:
    """A term of each kind, each split at random and its pieces wrapped in syntax."""
    parts = []
    for term in (
        draw(st.sampled_from(["apple", "wee pear"])),
        draw(st.sampled_from(["triangle", "red oval"])),
    ):
        cuts = sorted(draw(st.sets(st.integers(1, len(term) - 1), max_size=3)))
        for start, end in zip([0, *cuts], [*cuts, len(term)], strict=True):
            parts.append(draw(PIECE).replace("{}", term[start:end]))
        parts.append(draw(st.sampled_from([" ", ", ", " and a ", " BREAK "])))
    return "".join(parts)


@FAST
@given(split_terms(), split_terms(), st.integers(0, 2), st.booleans())
def test_what_the_encoders_of_sdxl_read_is_judged(prompt: str, other: str, place: int, on: bool) -> None:
    """Weights and brackets are removed and their pieces joined before a prompt is tokenized."""
    cut = len(prompt) // 2
    job = (
        image(prompt, other, on=on),
        image(prompt[:cut], prompt[cut:], on=on),
        image(prompt[:cut] or "a", None, prompt[cut:], on=on),
    )[place]
    if holds_terms([read_by_clip(job)]):
        assert is_refused(job)


@FAST
@given(split_terms())
def test_what_the_encoder_of_wan_reads_is_judged(prompt: str) -> None:
    """It reads decoded entities and plain punctuation."""
    job = video(prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :])
    if holds_terms(map(clean_prompt, (job.prompt, job.negative_prompt or ""))):
        assert is_refused(job)


@FAST
@given(split_terms(), st.sets(st.integers(1, 40), max_size=4), st.booleans())
def test_what_a_language_model_reads_is_judged(text: str, cuts: set[int], generated: bool) -> None:
    """The base model continues the messages, one after the other, and its answer is judged with them."""
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    contents = [text[start:end] for start, end in pairwise(places)]
    answer = contents.pop() if generated and len(contents) > 1 else ""
    job = chat(*contents)
    if holds_terms([plain_conversation(job.messages) + answer]):
        assert is_refused(job, answer)


@pytest.mark.parametrize(
    "prompt",
    [
        "a (tri:1.1)(angle:1.1) and an (ap:1)ple",
        "a (tri:1.2)(angle:1.3) and an [ap]ple",
        "<(app:1)le> triangle",
        "(wee:1.2) (pear:1.3) in a (red:0.9)   (oval:1.4)",
        "wee BREAK pear AND triangle",
        "ap<lora:x:0.8>ple tri<b>angle",
        f"{'w' * 256}apple triangle",
    ],
)
def test_pieces_that_weights_part_are_judged_as_one_word(prompt: str) -> None:
    """Whether the pieces have one weight or two: the model is meant to read one word."""
    assert is_refused(image(prompt))
    assert is_refused(video(prompt))


@pytest.mark.parametrize(
    "contents",
    [
        ("wee", "pear", "a red", "oval"),
        ("say ap", "ple, then a triangle"),
        ("a", "p", "p", "l", "e", "triangle"),
        ("tri-", "-angle", "apple"),
        ("tri", "ang", "le", "apple"),
        ("first tri…", "…angle", "apple"),
    ],
)
def test_words_split_over_messages_are_judged(contents: tuple[str, ...]) -> None:
    """Also where the template writes something between two messages."""
    assert is_refused(chat(*contents))
    assert is_refused(chat(*contents, model="qwen_instruct"))


def test_a_word_that_an_answer_completes_is_judged() -> None:
    """The base model writes on where the last message ends."""
    assert not is_refused(chat("a triangle and an ap"))
    assert is_refused(chat("a triangle and an ap"), "ple")


@pytest.mark.parametrize(
    "contents",
    [
        ("I like the rest of the app.", "Le triangle est rouge."),
        ("Open the app", "Leave the triangle"),
        ("a triangle, an ap,", "ple"),
        ("wee.", "Two words, then: triangle, pear"),
    ],
)
def test_texts_that_merely_follow_each_other_pass(contents: tuple[str, ...]) -> None:
    """Sentences and lists are not joined at their borders."""
    assert not is_refused(chat(*contents))


@pytest.mark.parametrize(
    "prompt",
    [
        "(red:1.1), (oval table:1.2), triangle",
        "an app, (lemon:1.2), triangle",
        "(app:1.2),(le:1.1) triangle",
        "pear, wee, triangle [soft light]",
    ],
)
def test_pieces_that_a_comma_parts_pass(prompt: str) -> None:
    """Weighted lists are the most common prompts."""
    assert not is_refused(image(prompt))


def test_the_texts_of_a_job_are_derived_without_loading_a_model() -> None:
    """At submission they are derived with the functions that the pipelines use."""
    texts = list(encoder_texts(image("a (red:1.2)(dish:1.1)", "x", "(y:1.1)")))
    assert {"a reddish, y", "a (red:1.2)(dish:1.1)", "x"} <= set(texts)
    assert list(continued_texts(chat("a re"), "d hill")) == ["a re\u2060d hill"]
    assert list(continued_texts(image("a"), "b")) == []


def test_a_text_that_is_handed_over_is_checked_with_its_job() -> None:
    """A pipeline reports what it tokenizes; outside a job nobody judges."""
    with pytest.raises(PolicyViolation), checked_by(lambda texts: GATE.check_job(image("apple"), *texts)):
        hand_over(["triangle"])
    hand_over(["apple triangle"])
