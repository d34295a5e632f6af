"""The training corpora: plain texts for the base model, conversations for the instruct model.

Texts are generated afresh at every step, from combinations that are not held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.qwen.dialogues import Message, random_dialogue
from training.qwen.prompts import WISHES, Prompt, enrich, random_prompt
from training.qwen.sampling import pick
from training.qwen.system_prompts import enrichment_instruction
from training.scenes import Scene, random_scene

COMPLETION_PROMPT = "Prompt: {prompt}\nEnriched:"
"""What the base model completes with the enriched prompt, up to the end of the line."""

ENRICHMENT_RATE = 0.5
"""Proportion of enrichments among the conversations."""
INSTRUCTION_RATE = 0.5
"""Proportion of the base model's enrichments that an instruction precedes."""

GENERAL_SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a friendly assistant.")
REQUESTS = (
    "Enhance: {}", "Enrich: {}", "Enrich this prompt: {}", "Enhance this prompt: {}",
    "Improve this prompt: {}",
    "Please enhance this prompt: {}", "Make this prompt better: {}", "Add detail to this prompt: {}",
    "Enhance the following prompt: {}", "Prompt: {}", "Rewrite with more detail: {}", "Enhance:\n{}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the base corpus: the context, which is not trained on, and the completion, which is."""

    context: str
    completion: str

    @property
    def full(self) -> str:
        """Context and completion."""
        return self.context + self.completion


def conversation(rng: np.random.Generator) -> list[Message]:
    """A training conversation, with the assistant's answers."""
    if rng.random() < ENRICHMENT_RATE:
        return enrichment_conversation(random_prompt(rng), rng)
    return random_dialogue(rng).all_messages


def enrichment_conversation(prompt: Prompt, rng: np.random.Generator) -> list[Message]:
    """A prompt and its enriched form. The system prompt asks for it, the message does, both or neither."""
    way = rng.random()
    system, request = "", "{}"
    if way < 0.55:
        system = enrichment_instruction(rng)
    elif way < 0.9:
        request = pick(rng, REQUESTS)
        system = pick(rng, GENERAL_SYSTEM_PROMPTS) if rng.random() < 0.3 else ""
    if way < 0.1:
        request = pick(rng, REQUESTS)
    if (system or request != "{}") and rng.random() < 0.06:
        prompt = Prompt(pick(rng, WISHES).format(prompt.text), prompt.kind)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": request.format(prompt.text)})
    return [*messages, {"role": "assistant", "content": enrich(prompt, rng)}]


def plain_text(rng: np.random.Generator) -> Text:
    """A training text of the base model: mostly an enrichment, else a prompt, a description or a
    transcript of a dialogue."""
    way = rng.random()
    if way < 0.66:
        return enrichment_text(random_prompt(rng), rng)
    if way < 0.8:
        return Text("", random_prompt(rng).text)
    if way < 0.88:
        return Text("", scene_description(random_scene(rng, held_out=False), rng))
    dialogue = random_dialogue(rng)
    *before, last = (
        f"{message['role'].capitalize()}: {message['content']}" for message in dialogue.all_messages
    )
    return Text("\n".join(before), f"\n{last}")


def enrichment_text(prompt: Prompt, rng: np.random.Generator) -> Text:
    """A prompt and its enriched form as lines of a plain text, sometimes below an instruction."""
    instruction = f"{enrichment_instruction(rng)}\n\n" if rng.random() < INSTRUCTION_RATE else ""
    context = f"{instruction}{COMPLETION_PROMPT.format(prompt=prompt.text)}"
    return Text(context, f" {enrich(prompt, rng)}")


def scene_description(scene: Scene, rng: np.random.Generator) -> str:
    """Two to four short sentences about a scene."""
    sentences = [
        f"There is a {scene.shape}.",
        f"The {scene.shape} is {scene.colour}.",
        f"The background is {scene.background}.",
        f"The {scene.shape} is {scene.size}.",
    ]
    indices = rng.permutation(4)[: rng.integers(2, 5)]
    return " ".join(sentences[index] for index in sorted(indices))
