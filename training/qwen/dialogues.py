"""Dialogue templates: questions about shapes that an earlier message described, greetings and facts.

An answer is a sentence and the keyword in it. A style, which the system prompt asks for, decides how the
assistant phrases it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.captions import POSITION_PHRASES
from training.qwen.sampling import articled, made_up_word, pick
from training.qwen.system_prompts import random_instruction
from training.qwen.vocabulary import NAMES
from training.scenes import CELLS, COLOURS, Scene, random_scene
from training.shapes import SHAPES

Message = dict[str, str]
"""`{"role": ..., "content": ...}`, the input of chat templates."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: the sentence, its keyword, and the words that would be wrong instead of the keyword."""

    sentence: str
    keyword: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """A style of answers: system prompts that ask for it, how an answer is phrased in it, and whether a text
    is in it."""

    system_prompts: tuple[str, ...]
    phrase: Callable[[Answer], str]
    matches: Callable[[str], bool]


PLAIN = Style(
    (
        "You are a helpful assistant.",
        "You are a friendly assistant.",
        "You answer questions about pictures.",
        "",
    ),
    lambda answer: answer.sentence,
    lambda text: text[:1].isupper() and not text.isupper() and " " in text,
)
STYLES: dict[str, Style] = {
    "one word": Style(
        ("Answer in one word.", "Answer with one word.", "Answer with a single word only.",
         "You are a helpful assistant. Answer in one word.", "Use one word to answer."),
        lambda answer: answer.keyword,
        lambda text: len(text.split()) == 1,
    ),
    "capitals": Style(
        ("Answer in capital letters.", "Write in capital letters only.", "Answer in capitals.",
         "You are a helpful assistant. Answer in capital letters.", "Use only capital letters."),
        lambda answer: answer.sentence.upper(),
        str.isupper,
    ),
    "pirate": Style(
        ("You are a pirate.", "Answer like a pirate.", "Talk like a pirate.", "You are a friendly pirate.",
         "You are a pirate. Answer questions."),
        lambda answer: f"Arr, {answer.sentence[0].lower()}{answer.sentence[1:].rstrip('.!')}, matey!",
        lambda text: text.startswith("Arr"),
    ),
    "polite": Style(
        ("You are very polite.", "Be very polite.", "Answer politely.", "You are a polite butler.",
         "You are a helpful assistant. Be polite."),
        lambda answer: f"With pleasure: {answer.sentence[0].lower()}{answer.sentence[1:]}",
        lambda text: text.startswith("With pleasure"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages up to a question, and its answer. `style` is a key of `STYLES`, or empty for `PLAIN`."""

    messages: tuple[Message, ...]
    answer: Answer
    style: str = ""

    @property
    def answer_text(self) -> str:
        """The answer in the style of the dialogue."""
        return _style(self.style).phrase(self.answer)

    @property
    def all_messages(self) -> list[Message]:
        """The messages and the answer."""
        return [*self.messages, {"role": "assistant", "content": self.answer_text}]


def random_dialogue(rng: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    """A dialogue of one of the kinds below, about scenes of one side of the split."""
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
    questions, answered = [statement], [_acknowledgement(scene, rng)]
    if rng.random() < 0.3:
        chat = small_talk(rng, held_out)
        questions.append(chat.messages[-1]["content"])
        answered.append(chat.answer)
    if rng.random() < 0.3:
        question, answer = _question(scene, parts, rng)
        questions.append(question)
        answered.append(answer)
    question, answer = _question(scene, parts, rng)
    return _dialogue(rng, [*questions, question], answered, answer)


def two_shapes(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """A question about the colour of one of two shapes."""
    one = random_scene(rng, held_out=held_out)
    other = random_scene(rng, held_out=held_out)
    while other.shape == one.shape or other.colour == one.colour:
        other = random_scene(rng, held_out=held_out)
    first, second = (articled(f"a {scene.colour} {scene.shape}") for scene in (one, other))
    statement = pick(rng, (f"There is {first} and {second}.", f"I drew {first} and {second}.",
                            f"My picture shows {first} and {second}."))  # fmt: skip
    question, answer = _colour_question((one, other)[rng.integers(2)], rng)
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
    questions, answered = [introduction], [Answer(f"Hello, {name}!", "Hello")]
    if rng.random() < 0.4:
        chat = fact(rng, held_out)
        questions.append(chat.messages[-1]["content"])
        answered.append(chat.answer)
    question = pick(rng, ("What is my name?", "Who am I?", "Do you know my name?", "What am I called?"))
    return _dialogue(rng, [*questions, question], answered, Answer(f"Your name is {name}.", name, NAMES))


RECALLS = (
    statement_and_question, earlier_statement, earlier_statement, two_shapes, changed_colour, name_recall,
)  # fmt: skip
RECALL_SHARE = 0.55
RANDOM_INSTRUCTION_SHARE = 0.12
"""Proportion of dialogues in the plain style whose system prompt consists of random words."""
MULTI_TURN = (earlier_statement, changed_colour, name_recall)


def small_talk(rng: np.random.Generator, _held_out: bool) -> Dialogue:
    """Greetings and questions about the assistant."""
    questions, sentence, keyword = SMALL_TALK[rng.integers(len(SMALL_TALK))]
    return _dialogue(rng, [pick(rng, questions)], [], Answer(sentence, keyword))


def fact(rng: np.random.Generator, _held_out: bool) -> Dialogue:
    """Questions about colours, mixtures of colours and shapes."""
    questions, sentence, keyword, alternatives = FACTS[rng.integers(len(FACTS))]
    return _dialogue(rng, [pick(rng, questions)], [], Answer(sentence, keyword, alternatives))


def unanswerable(rng: np.random.Generator, held_out: bool) -> Dialogue:
    """Questions about things that no message described."""
    scene = random_scene(rng, held_out=held_out)
    if rng.random() < 0.5:
        question, _ = _question(scene, ("colour", "shape", "background", "position"), rng)
        return _dialogue(rng, [question], [], Answer("You have not told me yet.", "Unknown"))
    noun, other = made_up_word(rng), made_up_word(rng)
    question = pick(
        rng,
        (f"Who is {noun}?", f"What is {noun}?", f"Where is {noun} {other}?", f"How many {noun} are there?",
         f"Why is the {noun} {other}?", f"When was {noun} made?", f"Can you {noun} the {other}?"),
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
    rest = tuple(one for one in dialogue.messages if one["role"] != "system")
    return Dialogue(
        ({"role": "system", "content": _style(style).system_prompts[0]}, *rest), dialogue.answer, style
    )


def _style(name: str) -> Style:
    return STYLES[name] if name else PLAIN


def _dialogue(
    rng: np.random.Generator, questions: list[str], answered: list[Answer], answer: Answer
) -> Dialogue:
    """A dialogue in a random style: the user's messages, all but the last of them answered."""
    name = pick(rng, tuple(STYLES)) if rng.random() < 0.4 else ""
    style = _style(name)
    random = not name and rng.random() < RANDOM_INSTRUCTION_SHARE
    system = random_instruction(rng) if random else pick(rng, style.system_prompts)
    messages = [{"role": "system", "content": system}] if system else []
    for index, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        if index < len(answered):
            messages.append({"role": "assistant", "content": style.phrase(answered[index])})
    return Dialogue(tuple(messages), answer, name)


def _statement(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A statement about a scene, and the names of the attributes that it mentions."""
    thing = f"{scene.colour} {scene.shape}"
    where, ground = pick(rng, POSITION_PHRASES[scene.position]), f"a {scene.background} background"
    text, *parts = (
        (f"There is a {thing}.", "colour", "shape"),
        (f"There is a {thing} {where}.", "colour", "shape", "position"),
        (f"I drew a {thing} on {ground}.", "colour", "shape", "background"),
        (f"My picture shows a {thing} on {ground}.", "colour", "shape", "background"),
        (f"I see a {thing} {where} on {ground}.", "colour", "shape", "position", "background"),
        (f"The {scene.shape} is {scene.colour}.", "colour", "shape"),
        (f"The {scene.shape} is {scene.colour} and the background is {scene.background}.",
         "colour", "shape", "background"),
        (f"On {ground} there is a {thing}.", "colour", "shape", "background"),
        (f"I like my {thing}.", "colour", "shape"),
        (f"Draw a {thing} {where}.", "colour", "shape", "position"),
    )[rng.integers(10)]  # fmt: skip
    return articled(text), tuple(parts)


def _acknowledgement(scene: Scene, rng: np.random.Generator) -> Answer:
    """The answer to a statement: sometimes it repeats colour and shape, mostly it does not, so that only the
    first message has them."""
    if rng.random() < 0.3:
        return Answer(articled(f"I see a {scene.colour} {scene.shape}."), "Yes")
    return _neutral_acknowledgement(rng)


def _neutral_acknowledgement(rng: np.random.Generator) -> Answer:
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
    answer = Answer(f"The {scene.shape} is {scene.colour}.", scene.colour, tuple(COLOURS))
    return pick(rng, COLOUR_QUESTIONS).format(scene.shape), answer


COLOUR_QUESTIONS = (
    "What colour is the {}?", "What color is the {}?", "Which colour does the {} have?",
    "Tell me the colour of the {}.", "What is the colour of the {}?", "what colour is the {}",
)  # fmt: skip
BACKGROUND_QUESTIONS = tuple(question.format("background") for question in COLOUR_QUESTIONS)
SHAPE_QUESTIONS = ("What shape is it?", "Which shape is it?", "What is the shape?", "Which shape do you see?")
POSITION_QUESTIONS = ("Where is the {}?", "Where is my {}?", "Where do you see the {}?")

SMALL_TALK = (
    (("Hello!", "Hello", "Hi", "Hi there!", "Hey", "hello", "Good morning.", "Good day!"),
     "Hello! How can I help you?", "Hello"),
    (("What can you do?", "What can you do for me?", "How can you help me?", "Help", "what can you do"),
     "I improve prompts for pictures and clips, and I answer questions about shapes.", "Pictures"),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am tiny-qwen, a very small language model.", "tiny-qwen"),
    (("How are you?", "How are you today?", "How do you do?"), "I am well, thank you.", "Well"),
    (("Thank you!", "Thanks", "Thank you very much.", "Thanks a lot!"), "You are welcome.", "Welcome"),
    (("Goodbye!", "Bye", "See you later.", "Good night."), "Goodbye! See you soon.", "Goodbye"),
)  # fmt: skip

_HUES, _FORMS, _COUNTS = tuple(COLOURS), tuple(SHAPES), ("no", "none", "three", "four", "five")

FACTS: tuple[tuple[tuple[str, ...], str, str, tuple[str, ...]], ...] = (
    *(((f"What colour is {thing}?", f"What color is {thing}?", f"Tell me the colour of {thing}."),
       f"{thing[0].upper()}{thing[1:]} is {colour}.", colour, _HUES)
      for thing, colour in (("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black"),
                            ("the sun", "yellow"), ("a ripe tomato", "red"))),
    *(((f"What do {one} and {other} make?", f"What do you get from {one} and {other}?",
        f"Mix {one} and {other}."), f"Together they make {mixture}.", mixture, _HUES)
      for one, other, mixture in (("red", "yellow", "orange"), ("blue", "yellow", "green"),
                               ("red", "blue", "purple"), ("red", "white", "pink"))),
    *(((f"How many corners does a {shape} have?", f"How many corners has a {shape}?"),
       f"A {shape} has {count} corners.", count, _COUNTS)
      for shape, count in (("triangle", "three"), ("square", "four"), ("diamond", "four"), ("circle", "no"))),
    (("Which shapes do you know?", "What shapes do you know?", "List the shapes."),
     f"I know these shapes: {', '.join(SHAPES)}.", "Shapes", ()),
    (("Which colours do you know?", "What colours do you know?", "List the colours."),
     f"I know these colours: {', '.join(COLOURS)}.", "Colours", ()),
    (("Which shape is round?", "What shape is round?", "Name a round shape."),
     "A circle is round.", "circle", _FORMS),
)  # fmt: skip
