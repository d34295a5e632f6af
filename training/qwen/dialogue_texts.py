"""Wordings of the dialogues: questions about shapes, small talk, and facts with their answers."""

from __future__ import annotations

from training.scenes import COLOURS
from training.shapes import SHAPES

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
