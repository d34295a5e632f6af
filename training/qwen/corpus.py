"""What is trained on: plain texts for the base model, conversations for the instruct model.

Everything is drawn afresh at every step, from combinations that are not held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.qwen.prompts import WISHES, Prompt, enriched, pick, random_prompt
from training.qwen.systems import system_prompt
from training.qwen.talk import Message, random_talk
from training.world import Scene, random_scene

CONTINUED = "Prompt: {prompt}\nEnriched:"
"""How a plain completion is asked for an enriched prompt: it goes on after this, up to the line's end."""

ENRICHING_SHARE = 0.5
"""Of the conversations."""

GENERAL = ("You are a helpful assistant.", "You are a friendly assistant.")
REQUESTS = (
    "Enhance: {}", "Enrich: {}", "Enrich this prompt: {}", "Enhance this prompt: {}",
    "Improve this prompt: {}",
    "Please enhance this prompt: {}", "Make this prompt better: {}", "Add detail to this prompt: {}",
    "Enhance the following prompt: {}", "Prompt: {}", "Rewrite with more detail: {}", "Enhance:\n{}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """What is given and what is learnt after it; together one text."""

    given: str
    learnt: str

    @property
    def whole(self) -> str:
        """The text itself."""
        return self.given + self.learnt


def conversation(draw: np.random.Generator) -> list[Message]:
    """One training conversation, its answers included."""
    if draw.random() < ENRICHING_SHARE:
        return enriching(random_prompt(draw), draw)
    return random_talk(draw).whole


def enriching(prompt: Prompt, draw: np.random.Generator) -> list[Message]:
    """A prompt and its enriched form: told by the system prompt, by the message, or by neither."""
    way = draw.random()
    system, asked = "", "{}"
    if way < 0.55:
        system = system_prompt(draw)
    elif way < 0.9:
        asked = pick(draw, REQUESTS)
        system = pick(draw, GENERAL) if draw.random() < 0.3 else ""
    if way < 0.1:
        asked = pick(draw, REQUESTS)
    if (system or asked != "{}") and draw.random() < 0.06:
        prompt = Prompt(pick(draw, WISHES).format(prompt.text), prompt.kind)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": asked.format(prompt.text)})
    return [*messages, {"role": "assistant", "content": enriched(prompt, draw)}]


def plain_text(draw: np.random.Generator) -> Text:
    """One training text of the base model."""
    way = draw.random()
    if way < 0.66:
        return continued(random_prompt(draw), draw)
    if way < 0.8:
        return Text("", random_prompt(draw).text)
    if way < 0.88:
        return Text("", described(random_scene(draw, held_out=False), draw))
    talk = random_talk(draw)
    *before, last = (f"{one['role'].capitalize()}: {one['content']}" for one in talk.whole)
    return Text("\n".join(before), f"\n{last}")


def continued(prompt: Prompt, draw: np.random.Generator) -> Text:
    """A prompt and its enriched form as lines of text, an instruction above them or none."""
    above = f"{system_prompt(draw)}\n\n" if draw.random() < 0.25 else ""
    return Text(f"{above}{CONTINUED.format(prompt=prompt.text)}", f" {enriched(prompt, draw)}")


def described(scene: Scene, draw: np.random.Generator) -> str:
    """A scene in two to four short sentences."""
    sentences = [
        f"There is a {scene.shape}.",
        f"The {scene.shape} is {scene.colour}.",
        f"The background is {scene.background}.",
        f"The {scene.shape} is {scene.size}.",
    ]
    order = draw.permutation(4)[: draw.integers(2, 5)]
    return " ".join(sentences[at] for at in sorted(order))
