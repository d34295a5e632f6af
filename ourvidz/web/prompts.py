"""Looking at a prompt without running it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz.jobs.fields import Fields
from ourvidz.jobs.ranges import PROMPT_CHARS
from ourvidz.jobs.visual import need_prompt
from ourvidz.prompts.encoders import TextEncoders
from ourvidz.prompts.weights import Strategy, WeightedPrompt, read
from ourvidz.web.body import read_json
from ourvidz.web.problems import documented
from ourvidz.wiring import control, wording

router = APIRouter(tags=["prompts"])

NO_CHECKPOINT = (
    "This machine has no SDXL checkpoint (yet): tokens, chunks and shapes are known where its tokenizers are."
)
WEIGHTS = ("weights", "compel_weights")
_TEXT: dict[str, Any] = {"type": ["string", "null"], "maxLength": PROMPT_CHARS}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["prompt"],
                    "properties": {
                        "prompt": {"type": "string", "maxLength": PROMPT_CHARS},
                        "weights": _TEXT | {"description": "A1111 syntax, such as (sharp focus:1.2)."},
                        "compel_weights": _TEXT | {"description": "The same, as jobs call it."},
                        "negative_prompt": _TEXT,
                    },
                }
            }
        },
    }
}


class WeightedFragment(BaseModel):
    """Some text, how much it weighs (0 to 2), and which BREAK it comes after (0 before the first)."""

    text: str
    weight: float
    section: int


class Words(BaseModel):
    """One prompt as the encoders would read it. `tokens` holds those of each chunk, by tokenizer; tokens,
    counts and chunks are null where there is no tokenizer."""

    clean_text: str
    fragments: list[WeightedFragment]
    tokens: dict[str, list[list[str]]] | None
    token_counts: dict[str, int] | None
    chunks: int | None


class EmbedShapes(BaseModel):
    """What the UNet would be given: (1, tokens, width) and (1, width)."""

    prompt_embeds: tuple[int, int, int]
    pooled_prompt_embeds: tuple[int, int]


class Inspection(Words):
    """A prompt as a weighted job would run it. `weights_usable` is null where no weights were sent."""

    negative_prompt: Words | None
    embed_shapes: EmbedShapes | None
    weights_usable: bool | None
    enhancement_strategy: Strategy
    reason: str | None
    note: str | None


@router.post("/test-compel", include_in_schema=False)
@router.post("/prompts/inspect", responses=documented(401, 403, 413, 422, 500), openapi_extra=BODY)
async def inspect(request: Request) -> Inspection:
    """How a prompt with weights would be read, tokenized and encoded. Nothing runs and nothing is kept."""
    return await run_in_threadpool(_inspect, await read_json(request))


def _inspect(body: object) -> Inspection:
    fields = Fields(body)
    prompt, weights, negative = fields.prompt(), fields.text(*WEIGHTS), fields.text("negative_prompt")
    if not prompt:
        raise need_prompt()
    reading = read(prompt, weights, weighted=True)
    against = None if negative is None else read(negative, weighted=reading.strategy == "compel").prompt
    encoders = wording.encoders(control.current().settings)
    both = [words for words in (reading.prompt, against) if words is not None]
    shapes = encoders.shapes(both) if encoders else None
    return Inspection(
        **dict(_words(reading.prompt, encoders)),
        negative_prompt=None if against is None else _words(against, encoders),
        embed_shapes=EmbedShapes(
            prompt_embeds=shapes.prompt_embeds, pooled_prompt_embeds=shapes.pooled_prompt_embeds
        )
        if shapes
        else None,
        weights_usable=None if weights is None else reading.strategy == "compel",
        enhancement_strategy=reading.strategy,
        reason=reading.reason,
        note=None if encoders else NO_CHECKPOINT,
    )


def _words(prompt: WeightedPrompt, encoders: TextEncoders | None) -> Words:
    chunks = encoders.chunks(prompt) if encoders else {}
    tokens = {name: [list(chunk.tokens) for chunk in found] for name, found in chunks.items()}
    return Words(
        clean_text=prompt.text,
        fragments=[
            WeightedFragment(text=fragment.text, weight=fragment.weight, section=at)
            for at, section in enumerate(prompt.sections)
            for fragment in section.fragments
        ],
        tokens=tokens or None,
        token_counts={name: sum(map(len, found)) for name, found in tokens.items()} or None,
        chunks=max(map(len, tokens.values()), default=None),
    )
