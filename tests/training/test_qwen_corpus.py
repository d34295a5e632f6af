from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.qwen import (
    answer_styles,
    corpus,
    dialogues,
    motion_prompts,
    prompts,
    sampling,
    system_prompts,
    vocabulary,
)
from training.qwen.prompts import Prompt
from training.qwen.verbs import DIRECTIONS, MOTION_VERBS, UNSEEN_VERB_FORMS, inflect
from training.scenes import COLOURS, combinations, is_held_out
from training.shapes import SHAPES

seeds = st.integers(0, 2**32)


@given(seeds)
def test_an_enriched_prompt_keeps_every_word_and_adds_four(seed: int) -> None:
    """A model is at best as good as its training texts."""
    rng = np.random.default_rng(seed)
    for prompt in (prompts.random_prompt(rng), prompts.held_out_prompt(rng), prompts.unseen_prompt(rng)):
        text = prompts.enrich(prompt, rng)
        assert prompts.keeps_content(prompt.text, text)
        assert prompts.added_words(prompt.text, text) >= prompts.ADDED_WORDS
        assert "\n" not in text


@given(seeds)
def test_added_details_name_no_colour_and_no_shape(seed: int) -> None:
    """Another colour would change the image."""
    rng = np.random.default_rng(seed)
    prompt = prompts.random_prompt(rng)
    added = set(vocabulary.words_of(prompts.enrich(prompt, rng))) - set(vocabulary.words_of(prompt.text))
    assert not added & {*COLOURS, *SHAPES}


@pytest.mark.parametrize(
    ("answer", "is_kept"),
    [
        ("a red circle on a blue background, soft light", True),
        ("A bright RED circle, on a blue background.", True),
        ("a red circle on a background, soft light", False),
        ("a blue circle on a blue background", False),
        ("", False),
    ],
)
def test_a_lost_word_is_detected(answer: str, is_kept: bool) -> None:
    """The main score relies on it."""
    assert prompts.keeps_content("a red circle on a blue background", answer) == is_kept


def test_a_word_that_occurs_twice_must_be_kept_twice() -> None:
    """One red does not keep a red circle and a red square."""
    assert not prompts.keeps_content("a red circle and a red square", "a red circle and a square")


@given(seeds)
def test_training_texts_use_no_held_out_scene(seed: int) -> None:
    """Held-out scores rely on it."""
    seen: list[tuple[str, ...]] = []
    scenes, clips = prompts.random_scene, prompts.random_clip

    def recording(original):  # type: ignore[no-untyped-def]
        def record(rng, *, held_out):  # type: ignore[no-untyped-def]
            subject = original(rng, held_out=held_out)
            seen.append(subject.combination)
            return subject

        return record

    with pytest.MonkeyPatch.context() as patch:
        for module in (prompts, dialogues, corpus):
            patch.setattr(module, "random_scene", recording(scenes))
        patch.setattr(prompts, "random_clip", recording(clips))
        rng = np.random.default_rng(seed)
        for _ in range(5):
            corpus.plain_text(rng)
            corpus.conversation(rng)
    assert not any(is_held_out(one) for one in seen)


def test_no_training_prompt_is_a_held_out_caption() -> None:
    """Complete captions of held-out combinations never occur."""
    held_out = {(c, s, b) for s, c, b, _ in combinations(held_out=True)}
    trained = {(c, s, b) for s, c, b, _ in combinations(held_out=False)}
    assert held_out - trained == set(), "colours and shapes are all trained; only positions are new"
    rng = np.random.default_rng(5)
    trained_prompts = {prompts.random_prompt(rng).text for _ in range(3000)}
    held_out_prompts = {prompts.held_out_prompt(rng) for _ in range(500)}
    texts = {one.text for one in held_out_prompts if "at the top" in one.text and "background" in one.text}
    assert texts
    assert not {one for one in texts if any(colour in one for colour in COLOURS)} & trained_prompts


def test_unseen_nouns_and_verbs_are_in_no_training_text() -> None:
    """They measure copying; a word of the corpus would measure recall."""
    rng = np.random.default_rng(6)
    seen = set()
    for _ in range(2000):
        seen |= set(vocabulary.words_of(corpus.plain_text(rng).full))
    assert not seen & {*vocabulary.UNSEEN, *UNSEEN_VERB_FORMS}


def test_prompts_have_many_wordings() -> None:
    """A model trained on few prompts would memorize them instead of copying."""
    rng = np.random.default_rng(7)
    sample = [prompts.random_prompt(rng) for _ in range(1000)]
    assert len({one.text for one in sample}) > 930
    assert {one.kind for one in sample} == set(prompts.KINDS)


@given(seeds)
def test_articles_match_the_next_word(seed: int) -> None:
    """ "a orange fox" would train a wrong article."""
    rng = np.random.default_rng(seed)
    text = prompts.held_out_prompt(rng).text.lower()
    for article, word in pairwise(text.replace(",", "").split()):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")


def test_equal_generators_give_equal_texts() -> None:
    """A resumed run must train on the texts of an uninterrupted one."""
    one, other = (np.random.default_rng((1, 2)) for _ in range(2))
    assert [corpus.conversation(one) for _ in range(20)] == [corpus.conversation(other) for _ in range(20)]
    assert [corpus.plain_text(one) for _ in range(20)] == [corpus.plain_text(other) for _ in range(20)]


@given(seeds)
def test_a_conversation_alternates_and_ends_with_an_answer(seed: int) -> None:
    """The chat template and the loss rely on it."""
    messages = corpus.conversation(np.random.default_rng(seed))
    roles = [one["role"] for one in messages if one["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(one["content"] for one in messages)
    assert "system" not in [one["role"] for one in messages[1:]]


@given(seeds)
def test_the_correct_answer_is_correct_in_every_style(seed: int) -> None:
    """Otherwise no model could reach the full score."""
    dialogue = dialogues.random_dialogue(np.random.default_rng(seed), held_out=True)
    for name, style in answer_styles.STYLES.items():
        styled = dialogues.in_style(dialogue, name)
        assert style.matches(styled.answer_text)
        assert dialogues.is_correct(styled, styled.answer_text)
        assert styled.messages[0] == {"role": "system", "content": style.system_prompts[0]}


def test_a_wrong_or_ambiguous_answer_is_not_correct() -> None:
    """An answer with several colours is not correct."""
    answer = answer_styles.Answer("The circle is red.", "red", tuple(COLOURS))
    dialogue = dialogues.Dialogue(({"role": "user", "content": "What colour is the circle?"},), answer)
    assert dialogues.is_correct(dialogue, "The circle is red.")
    assert dialogues.is_correct(dialogue, "RED")
    assert not dialogues.is_correct(dialogue, "The circle is blue.")
    assert not dialogues.is_correct(dialogue, "The circle is red or blue.")
    assert not dialogues.is_correct(dialogue, "")


@pytest.mark.parametrize("kind", dialogues.MULTI_TURN)
@given(seed=seeds)
def test_the_answer_of_a_multi_turn_dialogue_is_in_an_earlier_message(kind: object, seed: int) -> None:
    """The last question alone does not contain it."""
    dialogue = kind(np.random.default_rng(seed), True)  # type: ignore[operator]
    user_messages = [message["content"] for message in dialogue.messages if message["role"] == "user"]
    assert len(user_messages) >= 2
    assert any(
        dialogue.answer.keyword in str(user_messages) or _names_position(dialogue.answer.keyword, text)
        for text in user_messages[:-1]
    )


def _names_position(word: str, text: str) -> bool:
    from training.captions import POSITION_PHRASES

    return any(place in text for place in POSITION_PHRASES.get(word, ()))


def test_enrichment_conversations_contain_the_prompt_below_many_instructions() -> None:
    """Callers write their own system prompts."""
    rng = np.random.default_rng(8)
    instructions = {system_prompts.enrichment_instruction(rng) for _ in range(300)}
    assert len(instructions) > 250
    prompt = Prompt("a red circle", "picture")
    conversations = [corpus.enrichment_conversation(prompt, rng) for _ in range(200)]
    firsts = {one[0]["role"] for one in conversations}
    assert firsts == {"system", "user"}
    assert all("red circle" in one[-1]["content"].lower() for one in conversations)


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("move", ("move", "moves", "moving", "moved")),
        ("go", ("go", "goes", "going", "went", "gone")),
        ("fly", ("fly", "flies", "flying", "flew", "flown")),
        ("hurry", ("hurry", "hurries", "hurrying", "hurried")),
        ("drop", ("drop", "drops", "dropping", "dropped")),
        ("lie", ("lie", "lies", "lying", "lay", "lain")),
    ],
)
def test_verbs_are_inflected_by_the_rules_of_spelling(base: str, forms: tuple[str, ...]) -> None:
    """Misspelled forms would not test the words that callers write."""
    assert inflect(base).forms == forms


def test_there_is_a_held_out_prompt_for_every_verb_form() -> None:
    """The score of inflected verbs covers all of them."""
    texts = list(motion_prompts.inflected_prompts(MOTION_VERBS[:6], (7, 1)))
    forms = [verb.form(name) for verb in MOTION_VERBS[:6] for name in motion_prompts.FORMS]
    assert [form for form, text in zip(forms, texts, strict=True) if form not in text.split()] == []
    assert list(motion_prompts.inflected_prompts(MOTION_VERBS[:6], (7, 1))) == texts


def test_training_prompts_cover_every_verb_form_and_direction() -> None:
    """Words that are trained in one form only are the ones that a model gets wrong in the others."""
    rng = np.random.default_rng(9)
    texts = " ".join(f" {motion_prompts.motion_prompt(rng, held_out=False)} " for _ in range(8000))
    words = set(vocabulary.words_of(texts))
    assert {form for verb in MOTION_VERBS for form in verb.forms} <= words
    assert [direction for direction in DIRECTIONS if f" {direction}" not in texts] == []


@given(seeds)
def test_a_made_up_word_is_never_an_unseen_one(seed: int) -> None:
    """Unseen words must stay out of the training texts."""
    rng = np.random.default_rng(seed)
    made_up = {sampling.made_up_word(rng) for _ in range(50)}
    assert not made_up & {*vocabulary.UNSEEN, *UNSEEN_VERB_FORMS}
    assert all(len(word) >= 3 for word in made_up)
