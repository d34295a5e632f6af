"""Route that inspects a prompt: weights, tokens, chunks and embedding shapes, without a GPU."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ourvidz.jobs.fields import Fields
from ourvidz.jobs.generation import prompt_missing
from ourvidz.jobs.ranges import PROMPT_CHARS
from ourvidz.prompts.encoders import TextEncoders
from ourvidz.prompts.weights import Strategy, WeightedPrompt, parse_prompt
from ourvidz.web.body import read_json
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["prompts"])

NO_CHECKPOINT = (
    "This machine has no SDXL checkpoint (yet), or no library for tokenizers: tokens, chunks and shapes are"
    " known where both are."
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
    """A part of the prompt, its weight (0 to 2), and the number of `BREAK`s before it."""

    text: str
    weight: float
    section: int


class PromptAnalysis(BaseModel):
    """One prompt as the text encoders read it. `tokens` has those of each chunk, by tokenizer; tokens, counts
    and chunks are null where there is no tokenizer."""

    clean_text: str
    fragments: list[WeightedFragment]
    tokens: dict[str, list[list[str]]] | None
    token_counts: dict[str, int] | None
    chunks: int | None


class EmbedShapes(BaseModel):
    """Shapes of the UNet's inputs: (1, tokens, width) and (1, width)."""

    prompt_embeds: tuple[int, int, int]
    pooled_prompt_embeds: tuple[int, int]


class Inspection(PromptAnalysis):
    """A prompt as a weighted job would use it. `weights_usable` is null where no weights were sent."""

    negative_prompt: PromptAnalysis | None
    embed_shapes: EmbedShapes | None
    weights_usable: bool | None
    enhancement_strategy: Strategy
    reason: str | None
    note: str | None


@router.post("/test-compel", include_in_schema=False)
@router.post("/prompts/inspect", responses=documented(401, 403, 413, 422, 500), openapi_extra=BODY)
async def inspect(request: Request) -> Inspection:
    """Inspect how a prompt with weights is parsed, tokenized and encoded. Runs and stores nothing."""
    return await run_in_threadpool(_inspect, await read_json(request))


def _inspect(body: object) -> Inspection:
    fields = Fields(body)
    prompt, weights, negative = fields.prompt(), fields.text(*WEIGHTS), fields.text("negative_prompt")
    if not prompt:
        raise prompt_missing()
    reading = parse_prompt(prompt, weights, weighted=True)
    is_weighted = reading.strategy == "compel"
    negative_prompt = None if negative is None else parse_prompt(negative, weighted=is_weighted).prompt
    encoders = control.text_encoders(control.current().settings)
    return Inspection(
        **dict(_analysis(reading.prompt, encoders)),
        negative_prompt=None if negative_prompt is None else _analysis(negative_prompt, encoders),
        embed_shapes=_embed_shapes(reading.prompt, negative_prompt, encoders),
        weights_usable=None if weights is None else is_weighted,
        enhancement_strategy=reading.strategy,
        reason=reading.reason,
        note=None if encoders else NO_CHECKPOINT,
    )


def _embed_shapes(
    prompt: WeightedPrompt, negative_prompt: WeightedPrompt | None, encoders: TextEncoders | None
) -> EmbedShapes | None:
    if encoders is None:
        return None
    shapes = encoders.shapes([each for each in (prompt, negative_prompt) if each is not None])
    return EmbedShapes(prompt_embeds=shapes.prompt_embeds, pooled_prompt_embeds=shapes.pooled_prompt_embeds)


def _analysis(prompt: WeightedPrompt, encoders: TextEncoders | None) -> PromptAnalysis:
    chunks_by_encoder = encoders.chunks(prompt) if encoders else {}
    tokens = {name: [list(chunk.tokens) for chunk in chunks] for name, chunks in chunks_by_encoder.items()}
    return PromptAnalysis(
        clean_text=prompt.text,
        fragments=[
            WeightedFragment(text=fragment.text, weight=fragment.weight, section=index)
            for index, section in enumerate(prompt.sections)
            for fragment in section.fragments
        ],
        tokens=tokens or None,
        token_counts={name: sum(map(len, chunks)) for name, chunks in tokens.items()} or None,
        chunks=max(map(len, tokens.values()), default=None),
    )
