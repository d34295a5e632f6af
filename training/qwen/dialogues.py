"""Dialogue templates: questions about shapes that an earlier message described, greetings and facts.

Each kind of dialogue is a function. `answer_styles` phrases the answers, `dialogue_texts` has the wordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.captions import POSITION_PHRASES
from training.qwen.answer_styles import STYLES, Answer, find_style
from training.qwen.dialogue_texts import (
    BACKGROUND_QUESTIONS,
    COLOUR_QUESTIONS,
    FACTS,
    POSITION_QUESTIONS,
    SHAPE_QUESTIONS,
    SMALL_TALK,
)
from training.qwen.sampling import articled, made_up_word, pick
from training.qwen.system_prompts import random_instruction
from training.qwen.vocabulary import NAMES
from training.scenes import CELLS, COLOURS, Scene, random_scene
from training.shapes import SHAPES

Message = dict[str, str]
"""`{"role": ..., "content": ...}`, the input of chat templates."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages up to a question, and its answer. `style` is a key of `STYLES`, or empty for `PLAIN`."""

    messages: tuple[Message, ...]
    answer: Answer
    style: str = ""

    @property
    def answer_text(self) -> str:
        """The answer in the style of the dialogue."""
        return find_style(self.style).phrase(self.answer)

    @property
    def all_messages(self) -> list[Message]:
        """The messages and the answer."""
        return [*self.messages, {"role": "assistant", "content": self.answer_text}]


def random_dialogue(rng: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    """A dialogue of a random kind, about scenes of one side of the training split."""
    kinds = (*RECALLS, small_talk, fact, unanswerable)
    shares = np.array([*(RECALL_SHARE / len(RECALLS),) * len(RECALLS), 0.2, 0.15, 0.1])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    return kind(rng, held_out)


def statement_and_question(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A statement and a question about it in one message."""
    scene = random_scene(rng, held_out=held_out)
    statement, parts = _statement(scene, rng)
    question, answer = _question(scene, parts, rng)
    return _dialogue(rng, [f"{statement} {question}"], [], answer)


def earlier_statement(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about the first message; small talk or another question may lie between them."""
    scene = random_scene(rng, held_out=held_out)
    statement, parts = _statement(scene, rng)
    questions, earlier_answers = [statement], [_acknowledgement(scene, rng)]
    if rng.random() < 0.3:
        chat = small_talk(rng, held_out)
        questions.append(chat.messages[-1]["content"])
        earlier_answers.append(chat.answer)
    if rng.random() < 0.3:
        question, answer = _question(scene, parts, rng)
        questions.append(question)
        earlier_answers.append(answer)
    question, answer = _question(scene, parts, rng)
    return _dialogue(rng, [*questions, question], earlier_answers, answer)


def two_shapes(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about the colour of one of two shapes."""
    first_scene = random_scene(rng, held_out=held_out)
    second_scene = random_scene(rng, held_out=held_out)
    while second_scene.shape == first_scene.shape or second_scene.colour == first_scene.colour:
        second_scene = random_scene(rng, held_out=held_out)
    first, second = (articled(f"a {scene.colour} {scene.shape}") for scene in (first_scene, second_scene))
    statement = pick(rng, (f"There is {first} and {second}.", f"I drew {first} and {second}.",
                            f"My picture shows {first} and {second}."))  # fmt: skip
    question, answer = _colour_question((first_scene, second_scene)[rng.integers(2)], rng)
    if rng.random() < 0.4:
        return _dialogue(rng, [f"{statement} {question}"], [], answer)
    return _dialogue(rng, [statement, question], [_neutral_acknowledgement(rng)], answer)


def changed_colour(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about a colour that a later message changed."""
    scene = random_scene(rng, held_out=held_out)
    before = pick(rng, tuple(name for name in COLOURS if name != scene.colour))
    statement = articled(f"There is a {before} {scene.shape}.")
    change = pick(rng, ("Now the {} is {}.", "I painted the {} {}.", "The {} became {}."))
    change = change.format(scene.shape, scene.colour)
    question, answer = _colour_question(scene, rng)
    return _dialogue(
        rng,
        [statement, change, question],
        [_neutral_acknowledgement(rng), _neutral_acknowledgement(rng)],
        answer,
    )


def name_recall(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about the user's name, which the first message gives."""
    name = pick(rng, NAMES)
    introduction = pick(
        rng, (f"My name is {name}.", f"Hello, I am {name}.", f"Hi! My name is {name}.", f"Call me {name}.")
    )
    questions, earlier_answers = [introduction], [Answer(f"Hello, {name}!", "Hello")]
    if rng.random() < 0.4:
        chat = fact(rng, held_out)
        questions.append(chat.messages[-1]["content"])
        earlier_answers.append(chat.answer)
    question = pick(rng, ("What is my name?", "Who am I?", "Do you know my name?", "What am I called?"))
    return _dialogue(
        rng, [*questions, question], earlier_answers, Answer(f"Your name is {name}.", name, NAMES)
    )


RECALLS = (
    statement_and_question, earlier_statement, earlier_statement, two_shapes, changed_colour, name_recall,
)  # fmt: skip
RECALL_SHARE = 0.55
RANDOM_INSTRUCTION_SHARE = 0.12
"""Proportion of dialogues in the plain style whose system prompt consists of random words."""
MULTI_TURN = (earlier_statement, changed_colour, name_recall)


def small_talk(rng: np.random.Generator, _held_out: bool) -> Dialogue:
    """A greeting or a question about the assistant."""
    questions, sentence, keyword = SMALL_TALK[rng.integers(len(SMALL_TALK))]
    return _dialogue(rng, [pick(rng, questions)], [], Answer(sentence, keyword))


def fact(rng: np.random.Generator, _held_out: bool) -> Dialogue:
    """A question about colours, mixtures of colours, or shapes."""
    questions, sentence, keyword, alternatives = FACTS[rng.integers(len(FACTS))]
    return _dialogue(rng, [pick(rng, questions)], [], Answer(sentence, keyword, alternatives))


def unanswerable(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about something that no message described."""
    scene = random_scene(rng, held_out=held_out)
    if rng.random() < 0.5:
        question, _ = _question(scene, ("colour", "shape", "background", "position"), rng)
        return _dialogue(rng, [question], [], Answer("You have not told me yet.", "Unknown"))
    noun, adjective = made_up_word(rng), made_up_word(rng)
    question = pick(
        rng,
        (f"Who is {noun}?", f"What is {noun}?", f"Where is {noun} {adjective}?",
         f"How many {noun} are there?", f"Why is the {noun} {adjective}?", f"When was {noun} made?",
         f"Can you {noun} the {adjective}?"),
    )  # fmt: skip
    return _dialogue(
        rng, [question], [], Answer("I do not know. Ask me about shapes and colours.", "Unknown")
    )


def is_correct(dialogue: Dialogue, text: str) -> bool:
    """Whether a text gives the answer: it has the keyword and none of the alternatives. An answer without
    alternatives must be repeated in full, ignoring case."""
    words = {word.strip(".,!?:").lower() for word in text.split()}
    if not dialogue.answer.alternatives:
        return text.strip().lower() in (dialogue.answer_text.lower(), dialogue.answer.sentence.lower())
    return words & {word.lower() for word in dialogue.answer.alternatives} == {
        dialogue.answer.keyword.lower()
    }


def in_style(dialogue: Dialogue, style: str) -> Dialogue:
    """The same dialogue with a system prompt that asks for another style."""
    messages = tuple(message for message in dialogue.messages if message["role"] != "system")
    return Dialogue(
        ({"role": "system", "content": find_style(style).system_prompts[0]}, *messages),
        dialogue.answer,
        style,
    )


def _dialogue(
    rng: np.random.Generator, questions: list[str], earlier_answers: list[Answer], answer: Answer
) -> Dialogue:
    """A dialogue in a random style: the user's messages, all but the last of them answered."""
    name = pick(rng, tuple(STYLES)) if rng.random() < 0.4 else ""
    style = find_style(name)
    random = not name and rng.random() < RANDOM_INSTRUCTION_SHARE
    system = random_instruction(rng) if random else pick(rng, style.system_prompts)
    messages = [{"role": "system", "content": system}] if system else []
    for index, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        if index < len(earlier_answers):
            messages.append({"role": "assistant", "content": style.phrase(earlier_answers[index])})
    return Dialogue(tuple(messages), answer, name)


def _statement(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A statement about a scene, and the names of the attributes that it mentions."""
    description = f"{scene.colour} {scene.shape}"
    where, ground = pick(rng, POSITION_PHRASES[scene.position]), f"a {scene.background} background"
    text, *parts = (
        (f"There is a {description}.", "colour", "shape"),
        (f"There is a {description} {where}.", "colour", "shape", "position"),
        (f"I drew a {description} on {ground}.", "colour", "shape", "background"),
        (f"My picture shows a {description} on {ground}.", "colour", "shape", "background"),
        (f"I see a {description} {where} on {ground}.", "colour", "shape", "position", "background"),
        (f"The {scene.shape} is {scene.colour}.", "colour", "shape"),
        (f"The {scene.shape} is {scene.colour} and the background is {scene.background}.",
         "colour", "shape", "background"),
        (f"On {ground} there is a {description}.", "colour", "shape", "background"),
        (f"I like my {description}.", "colour", "shape"),
        (f"Draw a {description} {where}.", "colour", "shape", "position"),
    )[rng.integers(10)]  # fmt: skip
    return articled(text), tuple(parts)


def _acknowledgement(scene: Scene, rng: np.random.Generator) -> Answer:
    """The answer to a statement: sometimes it repeats colour and shape, mostly it does not, so that only the
    first message has them."""
    if rng.random() < 0.3:
        return Answer(articled(f"I see a {scene.colour} {scene.shape}."), "Yes")
    return _neutral_acknowledgement(rng)


def _neutral_acknowledgement(rng: np.random.Generator) -> Answer:
    """The answer to a statement that repeats nothing of it."""
    sentence = pick(rng, ("I will remember that.", "That sounds nice.", "Thank you for telling me."))
    return Answer(sentence, "Noted")


def _question(scene: Scene, parts: tuple[str, ...], rng: np.random.Generator) -> tuple[str, Answer]:
    """A question about one of the attributes `parts`, and its answer."""
    shape, background = scene.shape, scene.background
    match pick(rng, parts):
        case "colour":
            return _colour_question(scene, rng)
        case "shape":
            return pick(rng, SHAPE_QUESTIONS), Answer(f"It is a {shape}.", shape, tuple(SHAPES))
        case "background":
            sentence = f"The background is {background}."
            return pick(rng, BACKGROUND_QUESTIONS), Answer(sentence, background, tuple(COLOURS))
        case _:
            sentence = f"The {shape} is {POSITION_PHRASES[scene.position][0]}."
            return pick(rng, POSITION_QUESTIONS).format(shape), Answer(sentence, scene.position, tuple(CELLS))


def _colour_question(scene: Scene, rng: np.random.Generator) -> tuple[str, Answer]:
    """A question about the colour of the shape, and its answer."""
    answer = Answer(f"The {scene.shape} is {scene.colour}.", scene.colour, tuple(COLOURS))
    return pick(rng, COLOUR_QUESTIONS).format(scene.shape), answer
