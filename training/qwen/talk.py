"""Short conversations: questions about shapes that an earlier turn described, greetings, plain facts.

An answer is drawn as a sentence and as the one word that matters in it; a style, asked for by the system
prompt, decides what is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.captions import PLACES
from training.qwen.prompts import articled, made_up, pick
from training.qwen.systems import odd_system_prompt
from training.qwen.words import NAMES
from training.shapes import SHAPES
from training.world import CELLS, COLOURS, Scene, random_scene

Message = dict[str, str]
"""`{"role": ..., "content": ...}`, as chat templates take it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said: a sentence, the word that matters in it, and the words it must not be mixed up with."""

    sentence: str
    word: str
    among: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """A way to answer; `fits` tells an answer in it from others."""

    asked: tuple[str, ...]
    say: Callable[[Answer], str]
    fits: Callable[[str], bool]


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
        lambda answer: answer.word,
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
class Talk:
    """Messages that end with a question, and the answer; `style` names one of `STYLES` or is empty."""

    messages: tuple[Message, ...]
    answer: Answer
    style: str = ""

    @property
    def said(self) -> str:
        """The answer in its style."""
        return _style(self.style).say(self.answer)

    @property
    def whole(self) -> list[Message]:
        """All messages, the answer too."""
        return [*self.messages, {"role": "assistant", "content": self.said}]


def random_talk(draw: np.random.Generator, *, held_out: bool = False) -> Talk:
    """A conversation of one of the kinds below, about scenes of one side of the split."""
    kinds = (*RECALLS, small_talk, plain_fact, unknown)
    shares = np.array([*(RECALL_SHARE / len(RECALLS),) * len(RECALLS), 0.2, 0.15, 0.1])
    kind = kinds[draw.choice(len(kinds), p=shares / shares.sum())]
    return kind(draw, held_out)


def told_here(draw: np.random.Generator, held_out: bool) -> Talk:
    """A question beside what it asks for, in one message."""
    scene = random_scene(draw, held_out=held_out)
    statement, parts = _told(scene, draw)
    question, answer = _question(scene, parts, draw)
    return _talk(draw, [f"{statement} {question}"], [], answer)


def told_earlier(draw: np.random.Generator, held_out: bool) -> Talk:
    """The answer depends on the first turn; between them there may be another one, or another question."""
    scene = random_scene(draw, held_out=held_out)
    statement, parts = _told(scene, draw)
    asked, answered = [statement], [_acknowledged(scene, draw)]
    if draw.random() < 0.3:
        chat = small_talk(draw, held_out)
        asked.append(chat.messages[-1]["content"])
        answered.append(chat.answer)
    if draw.random() < 0.3:
        question, answer = _question(scene, parts, draw)
        asked.append(question)
        answered.append(answer)
    question, answer = _question(scene, parts, draw)
    return _talk(draw, [*asked, question], answered, answer)


def two_things(draw: np.random.Generator, held_out: bool) -> Talk:
    """Which of two colours belongs to which of two shapes."""
    one = random_scene(draw, held_out=held_out)
    other = random_scene(draw, held_out=held_out)
    while other.shape == one.shape or other.colour == one.colour:
        other = random_scene(draw, held_out=held_out)
    first, second = (articled(f"a {scene.colour} {scene.shape}") for scene in (one, other))
    statement = pick(draw, (f"There is {first} and {second}.", f"I drew {first} and {second}.",
                            f"My picture shows {first} and {second}."))  # fmt: skip
    question, answer = _colour_question((one, other)[draw.integers(2)], draw)
    if draw.random() < 0.4:
        return _talk(draw, [f"{statement} {question}"], [], answer)
    return _talk(draw, [statement, question], [_noted(draw)], answer)


def changed(draw: np.random.Generator, held_out: bool) -> Talk:
    """The later of two colours counts."""
    scene = random_scene(draw, held_out=held_out)
    before = pick(draw, tuple(name for name in COLOURS if name != scene.colour))
    told = articled(f"There is a {before} {scene.shape}.")
    change = pick(draw, ("Now the {} is {}.", "I painted the {} {}.", "The {} became {}."))
    change = change.format(scene.shape, scene.colour)
    question, answer = _colour_question(scene, draw)
    return _talk(draw, [told, change, question], [_noted(draw), _noted(draw)], answer)


def named(draw: np.random.Generator, held_out: bool) -> Talk:
    """A name told first and asked for later."""
    name = pick(draw, NAMES)
    told = pick(
        draw, (f"My name is {name}.", f"Hello, I am {name}.", f"Hi! My name is {name}.", f"Call me {name}.")
    )
    asked, answered = [told], [Answer(f"Hello, {name}!", "Hello")]
    if draw.random() < 0.4:
        chat = plain_fact(draw, held_out)
        asked.append(chat.messages[-1]["content"])
        answered.append(chat.answer)
    question = pick(draw, ("What is my name?", "Who am I?", "Do you know my name?", "What am I called?"))
    return _talk(draw, [*asked, question], answered, Answer(f"Your name is {name}.", name, NAMES))


RECALLS = (told_here, told_earlier, told_earlier, two_things, changed, named)
RECALL_SHARE = 0.55
ODD_SHARE = 0.12
"""How many conversations in the plain style have a system prompt of any words."""
MULTI_TURN = (told_earlier, changed, named)


def small_talk(draw: np.random.Generator, _held_out: bool) -> Talk:
    """Greetings and questions about itself."""
    asked, sentence, word = CHATTER[draw.integers(len(CHATTER))]
    return _talk(draw, [pick(draw, asked)], [], Answer(sentence, word))


def plain_fact(draw: np.random.Generator, _held_out: bool) -> Talk:
    """The little it knows about the world."""
    asked, sentence, word, among = FACTS[draw.integers(len(FACTS))]
    return _talk(draw, [pick(draw, asked)], [], Answer(sentence, word, among))


def unknown(draw: np.random.Generator, held_out: bool) -> Talk:
    """Questions nobody told the answer of."""
    scene = random_scene(draw, held_out=held_out)
    if draw.random() < 0.5:
        question, _ = _question(scene, ("colour", "shape", "background", "position"), draw)
        return _talk(draw, [question], [], Answer("You have not told me yet.", "Unknown"))
    noun, other = made_up(draw), made_up(draw)
    question = pick(
        draw,
        (f"Who is {noun}?", f"What is {noun}?", f"Where is {noun} {other}?", f"How many {noun} are there?",
         f"Why is the {noun} {other}?", f"When was {noun} made?", f"Can you {noun} the {other}?"),
    )  # fmt: skip
    return _talk(draw, [question], [], Answer("I do not know. Ask me about shapes and colours.", "Unknown"))


def right(talk: Talk, text: str) -> bool:
    """Whether a text gives the answer: its word, and none of those it could be mixed up with; where there is
    nothing to mix up, the sentence or the word itself."""
    said = {word.strip(".,!?:").lower() for word in text.split()}
    if not talk.answer.among:
        return text.strip().lower() in (talk.said.lower(), talk.answer.sentence.lower())
    return said & {word.lower() for word in talk.answer.among} == {talk.answer.word.lower()}


def styled(talk: Talk, style: str) -> Talk:
    """The same question under another system prompt."""
    rest = tuple(one for one in talk.messages if one["role"] != "system")
    return Talk(({"role": "system", "content": _style(style).asked[0]}, *rest), talk.answer, style)


def _style(name: str) -> Style:
    return STYLES[name] if name else PLAIN


def _talk(draw: np.random.Generator, asked: list[str], answered: list[Answer], answer: Answer) -> Talk:
    """The turns in order, in one style."""
    name = pick(draw, tuple(STYLES)) if draw.random() < 0.4 else ""
    style = _style(name)
    odd = not name and draw.random() < ODD_SHARE
    system = odd_system_prompt(draw) if odd else pick(draw, style.asked)
    messages = [{"role": "system", "content": system}] if system else []
    for at, question in enumerate(asked):
        messages.append({"role": "user", "content": question})
        if at < len(answered):
            messages.append({"role": "assistant", "content": style.say(answered[at])})
    return Talk(tuple(messages), answer, name)


def _told(scene: Scene, draw: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A statement about a scene, and which parts of it were told."""
    thing = f"{scene.colour} {scene.shape}"
    where, ground = pick(draw, PLACES[scene.position]), f"a {scene.background} background"
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
    )[draw.integers(10)]  # fmt: skip
    return articled(text), tuple(parts)


def _acknowledged(scene: Scene, draw: np.random.Generator) -> Answer:
    """Sometimes with what was told, mostly without: then only the first turn has the answer."""
    if draw.random() < 0.3:
        return Answer(articled(f"I see a {scene.colour} {scene.shape}."), "Yes")
    return _noted(draw)


def _noted(draw: np.random.Generator) -> Answer:
    sentence = pick(draw, ("I will remember that.", "That sounds nice.", "Thank you for telling me."))
    return Answer(sentence, "Noted")


def _question(scene: Scene, parts: tuple[str, ...], draw: np.random.Generator) -> tuple[str, Answer]:
    """About one of the told parts."""
    shape, background = scene.shape, scene.background
    match pick(draw, parts):
        case "colour":
            return _colour_question(scene, draw)
        case "shape":
            return pick(draw, SHAPE_ASKED), Answer(f"It is a {shape}.", shape, tuple(SHAPES))
        case "background":
            sentence = f"The background is {background}."
            return pick(draw, GROUND_ASKED), Answer(sentence, background, tuple(COLOURS))
        case _:
            sentence = f"The {shape} is {PLACES[scene.position][0]}."
            return pick(draw, PLACE_ASKED).format(shape), Answer(sentence, scene.position, tuple(CELLS))


def _colour_question(scene: Scene, draw: np.random.Generator) -> tuple[str, Answer]:
    answer = Answer(f"The {scene.shape} is {scene.colour}.", scene.colour, tuple(COLOURS))
    return pick(draw, COLOUR_ASKED).format(scene.shape), answer


COLOUR_ASKED = (
    "What colour is the {}?", "What color is the {}?", "Which colour does the {} have?",
    "Tell me the colour of the {}.", "What is the colour of the {}?", "what colour is the {}",
)  # fmt: skip
GROUND_ASKED = tuple(asked.format("background") for asked in COLOUR_ASKED)
SHAPE_ASKED = ("What shape is it?", "Which shape is it?", "What is the shape?", "Which shape do you see?")
PLACE_ASKED = ("Where is the {}?", "Where is my {}?", "Where do you see the {}?")

CHATTER = (
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
        f"Mix {one} and {other}."), f"Together they make {made}.", made, _HUES)
      for one, other, made in (("red", "yellow", "orange"), ("blue", "yellow", "green"),
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
