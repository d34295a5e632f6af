from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.qwen import corpus, prompts, systems, talk, words
from training.qwen.prompts import Prompt
from training.shapes import SHAPES
from training.world import COLOURS, combinations, is_held_out

seeds = st.integers(0, 2**32)


@given(seeds)
def test_an_enriched_prompt_keeps_every_word_and_adds_four(seed: int) -> None:
    """What a model is taught is what it will do at best."""
    draw = np.random.default_rng(seed)
    for prompt in (prompts.random_prompt(draw), prompts.held_out_prompt(draw), prompts.unseen_prompt(draw)):
        text = prompts.enriched(prompt, draw)
        assert prompts.kept(prompt.text, text)
        assert prompts.added_words(prompt.text, text) >= prompts.ADDED_WORDS
        assert "\n" not in text


@given(seeds)
def test_what_is_added_says_nothing_about_colour_or_shape(seed: int) -> None:
    """An enriched prompt that named another colour would change the picture."""
    draw = np.random.default_rng(seed)
    prompt = prompts.random_prompt(draw)
    added = set(words.words_of(prompts.enriched(prompt, draw))) - set(words.words_of(prompt.text))
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
def test_a_lost_word_is_noticed(answer: str, is_kept: bool) -> None:
    """The measure behind the first score must be able to fail."""
    assert prompts.kept("a red circle on a blue background", answer) == is_kept


def test_a_word_asked_for_twice_must_come_twice() -> None:
    """A red circle beside a red square is not kept by one red."""
    assert not prompts.kept("a red circle and a red square", "a red circle and a square")


@given(seeds)
def test_training_draws_no_held_out_scene(seed: int) -> None:
    """The promise behind every held-out score: all texts come from scenes of the training side."""
    seen: list[tuple[str, ...]] = []
    scenes, clips = prompts.random_scene, prompts.random_clip

    def watched(original):  # type: ignore[no-untyped-def]
        def drawn(draw, *, held_out):  # type: ignore[no-untyped-def]
            made = original(draw, held_out=held_out)
            seen.append(made.combination)
            return made

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for room in (prompts, talk, corpus):
            patch.setattr(room, "random_scene", watched(scenes))
        patch.setattr(prompts, "random_clip", watched(clips))
        draw = np.random.default_rng(seed)
        for _ in range(5):
            corpus.plain_text(draw)
            corpus.conversation(draw)
    assert not any(is_held_out(one) for one in seen)


def test_no_training_text_is_a_held_out_caption() -> None:
    """Seen from outside: complete captions of held-out combinations never turn up."""
    held_out = {(c, s, b) for s, c, b, _ in combinations(held_out=True)}
    trained = {(c, s, b) for s, c, b, _ in combinations(held_out=False)}
    assert held_out - trained == set(), "colours and shapes are all trained; only places are new"
    draw = np.random.default_rng(5)
    drawn = {prompts.random_prompt(draw).text for _ in range(3000)}
    asked = {prompts.held_out_prompt(draw) for _ in range(500)}
    told = {one.text for one in asked if "at the top" in one.text and "background" in one.text}
    assert told
    assert not {one for one in told if any(colour in one for colour in COLOURS)} & drawn


def test_unseen_nouns_are_in_no_training_text() -> None:
    """They measure copying; a word of the corpus would measure memory."""
    draw = np.random.default_rng(6)
    seen = set()
    for _ in range(2000):
        seen |= set(words.words_of(corpus.plain_text(draw).whole))
    assert not seen & set(words.UNSEEN)


def test_prompts_are_drawn_in_many_wordings() -> None:
    """A model that saw few prompts would learn them by heart instead of copying."""
    draw = np.random.default_rng(7)
    drawn = [prompts.random_prompt(draw) for _ in range(1000)]
    assert len({one.text for one in drawn}) > 930
    assert {one.kind for one in drawn} == set(prompts.KINDS)


@given(seeds)
def test_articles_fit_their_words(seed: int) -> None:
    """ "a orange fox" would teach a word that nobody writes."""
    draw = np.random.default_rng(seed)
    text = prompts.held_out_prompt(draw).text.lower()
    for article, word in pairwise(text.replace(",", "").split()):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")


def test_equal_draws_give_equal_texts() -> None:
    """A resumed run must see what a run in one piece sees."""
    one, other = (np.random.default_rng((1, 2)) for _ in range(2))
    assert [corpus.conversation(one) for _ in range(20)] == [corpus.conversation(other) for _ in range(20)]
    assert [corpus.plain_text(one) for _ in range(20)] == [corpus.plain_text(other) for _ in range(20)]


@given(seeds)
def test_a_conversation_takes_turns_and_ends_with_an_answer(seed: int) -> None:
    """What the chat template and the loss rely on."""
    messages = corpus.conversation(np.random.default_rng(seed))
    roles = [one["role"] for one in messages if one["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(one["content"] for one in messages)
    assert "system" not in [one["role"] for one in messages[1:]]


@given(seeds)
def test_the_right_answer_is_right_in_every_style(seed: int) -> None:
    """A measure that the training texts themselves fail would have a ceiling."""
    one = talk.random_talk(np.random.default_rng(seed), held_out=True)
    for name, style in talk.STYLES.items():
        again = talk.styled(one, name)
        assert style.fits(again.said)
        assert talk.right(again, again.said)
        assert again.messages[0] == {"role": "system", "content": style.asked[0]}


def test_a_wrong_or_hedged_answer_is_wrong() -> None:
    """Naming every colour is no answer."""
    answer = talk.Answer("The circle is red.", "red", tuple(COLOURS))
    asked = talk.Talk(({"role": "user", "content": "What colour is the circle?"},), answer)
    assert talk.right(asked, "The circle is red.")
    assert talk.right(asked, "RED")
    assert not talk.right(asked, "The circle is blue.")
    assert not talk.right(asked, "The circle is red or blue.")
    assert not talk.right(asked, "")


@pytest.mark.parametrize("kind", talk.MULTI_TURN)
@given(seed=seeds)
def test_some_answers_need_an_earlier_turn(kind: object, seed: int) -> None:
    """The last question alone does not tell the word that is asked for."""
    one = kind(np.random.default_rng(seed), True)  # type: ignore[operator]
    asked = [message["content"] for message in one.messages if message["role"] == "user"]
    assert len(asked) >= 2
    assert any(
        one.answer.word in text or _placed(one.answer.word, text) or one.answer.word in str(asked)
        for text in asked[:-1]
    )


def _placed(word: str, text: str) -> bool:
    from training.captions import PLACES

    return any(place in text for place in PLACES.get(word, ()))


def test_an_instruction_with_unknown_words_still_is_followed_by_a_prompt() -> None:
    """Callers bring their own neutral system prompts."""
    draw = np.random.default_rng(8)
    asked = {systems.system_prompt(draw) for _ in range(300)}
    assert len(asked) > 250
    prompt = Prompt("a red circle", "picture")
    given_ones = [corpus.enriching(prompt, draw) for _ in range(200)]
    firsts = {one[0]["role"] for one in given_ones}
    assert firsts == {"system", "user"}
    assert all("red circle" in one[-1]["content"].lower() for one in given_ones)
