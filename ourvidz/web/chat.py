"""Conversations and enhancements that a caller waits for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ourvidz import dispatch, log
from ourvidz.errors import CallerError, JobTimeout, OurvidzError
from ourvidz.jobs.catalog import CATALOG, JobType, lookup
from ourvidz.jobs.fields import Fields, refused
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.schema import conversation_schema
from ourvidz.web import audit, problems, sse
from ourvidz.web.body import read_json
from ourvidz.web.problems import documented
from ourvidz.web.waiting import (
    Answer,
    Heard,
    answer_of,
    as_events,
    begun,
    unless_gone,
    wait_for,
)

router = APIRouter(tags=["chat"])

ENHANCE = "chat_enhance"
_TYPES = tuple(row.name for row in CATALOG.values() if row.kind == "chat")
_NAMED = ("config.job_type", "job_type", "type")
_IDS = ("id", "job_id", "job_type")
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["token", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
WAITED: dict[str, Any] = {
    "responses": {
        200: {"content": {"text/event-stream": {"itemSchema": EVENT}}},
        **documented(401, 403, 413, 422, 500, 503, 504),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": conversation_schema()}},
        }
    },
}
_log = log.get(__name__)


class ModelUsed(BaseModel):
    """Which model wrote a text. What a wait that ended early never heard is null."""

    model_name: str
    inference_engine: str | None
    active_model_type: str


class Waited(BaseModel):
    """What every synchronous answer has; times are seconds. `GET /jobs/{job_id}` shows the job behind it."""

    success: Literal[True] = True
    generation_time: float
    tokens_generated: int
    finish_reason: Literal["stop", "length", "timeout", "error"]
    job_id: str
    model_info: ModelUsed
    sfw_mode: bool
    content_tier: Any
    unrestricted_mode: bool


class ChatAnswer(Waited):
    """The next turn of a conversation."""

    response: str


class Enhanced(Waited):
    """An enhanced prompt: `qwen` wrote it, or as a `fallback` it is the original, and `reason` says why."""

    enhanced_prompt: str
    enhancement_strategy: Literal["qwen", "fallback"]
    enhancement_reason: str | None


@router.post("/chat", response_model=ChatAnswer, **WAITED)
async def chat(request: Request) -> Response:
    """Continue a conversation, and wait for the text."""
    return await _respond(request, "chat_conversation")


@router.post("/chat/unrestricted", response_model=ChatAnswer, **WAITED)
async def chat_unrestricted(request: Request) -> Response:
    """The same as `chat_unrestricted`."""
    return await _respond(request, "chat_unrestricted")


@router.post("/generate", response_model=ChatAnswer, **WAITED)
async def generate(request: Request) -> Response:
    """The same with the type that `config.job_type` names."""
    return await _respond(request, "chat_conversation")


@router.post("/enhance/legacy", response_model=Enhanced, **WAITED)
@router.post("/enhance", response_model=Enhanced, **WAITED)
async def enhance(request: Request) -> Response:
    """Enhance a prompt. When that fails through no fault of the caller, the prompt comes back as it is."""
    return await _respond(request, ENHANCE)


async def _respond(request: Request, type_name: str) -> Response:
    payload = await read_json(request)
    job = await run_in_threadpool(parse_request, request, payload, type_name)
    enhancing = type_name == ENHANCE
    heard = wait_for(job)
    if enhancing:
        heard = _or_as_it_is(heard, job)
    if job.stream:

        def written(item: str | Answer) -> Iterator[bytes]:
            if isinstance(item, Answer):
                yield sse.encode_json_event(_document(item, job, enhancing=enhancing), event="done")
            else:
                yield sse.encode_json_event({"text": item}, event="token")

        def failure(error: OurvidzError) -> bytes:
            audit.entry(request.scope).code = error.code
            document = problems.document(error, request.url.path).model_dump(mode="json")
            return sse.encode_json_event(document, event="error")

        events = await begun(request, as_events(heard, written, failure))
        return sse.EventStreamResponse(events, {"X-Job-Id": job.id})
    answer = await unless_gone(request, lambda: answer_of(heard))
    return JSONResponse(_document(answer, job, enhancing=enhancing))


def parse_request(request: Request, payload: object, type_name: str, *, prefix: str = "") -> ChatJob:
    """The text job a body asks for, with an id of our own. Raises `CallerError`; nothing is written."""
    row = _row(Fields(payload), type_name)
    assert isinstance(payload, dict)
    asked = {name: value for name, value in payload.items() if name not in _IDS} | {"type": row.name}
    job = dispatch.parse_payload(asked, make_id=lambda: f"{prefix}{uuid.uuid4().hex}")
    assert isinstance(job, ChatJob)
    entry = audit.entry(request.scope)
    entry.job_id, entry.user_id, entry.type = job.id, job.user_id, job.type
    return job


def _row(fields: Fields, type_name: str) -> JobType:
    """The type a body names, else the route's. For an enhancement it names what is being enhanced."""
    named = fields.first(*_NAMED)
    row = lookup(named.value) if named and isinstance(named.value, str) else None
    if named is not None and type_name == ENHANCE:
        if row is None:
            raise refused(named.path, f"one of {', '.join(CATALOG)}", named.value)
    elif named is not None and (row is None or row.kind != "chat"):
        raise refused(named.path, f"one of {', '.join(_TYPES)}", named.value)
    return row if row is not None and type_name != ENHANCE else CATALOG[type_name]


async def _or_as_it_is(heard: Heard, job: ChatJob) -> Heard:
    """An enhancement, or the original prompt where there is none to be had."""
    began = time.monotonic()
    answer: Answer | None = None
    reason: str | None = None
    async with aclosing(heard):
        try:
            async for item in heard:
                if isinstance(item, Answer):
                    answer = item
                else:
                    yield item
        except OurvidzError as failed:
            if isinstance(failed, CallerError) and not isinstance(failed, JobTimeout):
                raise
            _log.warning("enhancement_failed", job_id=job.id, code=failed.code)
            reason = failed.message
            late = isinstance(failed, JobTimeout)
            answer = _nothing(time.monotonic() - began, "timeout" if late else "error")
    assert answer is not None
    yield _settled(answer, job, reason)


def _nothing(spent_s: float, finish_reason: str) -> Answer:
    told = {"generation_time": round(spent_s, 3), "tokens_generated": 0, "finish_reason": finish_reason}
    return Answer("", told)


def _settled(answer: Answer, job: ChatJob, reason: str | None) -> Answer:
    """The answer with the prompt to use. Half an enhancement is none."""
    if answer.fell_back:
        return Answer(answer.text, answer.told, answer.enhanced_prompt or job.asked)
    if reason is None and answer.finish_reason == "timeout":
        reason = "The enhancement took too long."
    found = (answer.enhanced_prompt or answer.text).strip()
    if reason is None and found:
        told = {"enhancement_strategy": "qwen", **answer.told}
        return Answer(answer.text, told, found)
    told = {
        **answer.told,
        "enhancement_strategy": "fallback",
        "enhancement_reason": reason or "The model wrote nothing.",
    }
    return Answer(answer.text, told, job.asked)


def _document(answer: Answer, job: ChatJob, *, enhancing: bool) -> dict[str, Any]:
    told = answer.told
    common: dict[str, Any] = {
        "generation_time": told.get("generation_time", 0.0),
        "tokens_generated": told.get("tokens_generated", 0),
        "finish_reason": answer.finish_reason,
        "job_id": job.id,
        "model_info": model_used(answer, job),
        "sfw_mode": job.sfw_mode,
        "content_tier": job.flags.get("content_tier"),
        "unrestricted_mode": bool(job.flags.get("unrestricted_mode", False)),
    }
    if not enhancing:
        return ChatAnswer(**common, response=answer.text).model_dump(mode="json")
    return Enhanced(
        **common,
        enhanced_prompt=answer.enhanced_prompt or "",
        enhancement_strategy=told["enhancement_strategy"],
        enhancement_reason=told.get("enhancement_reason"),
    ).model_dump(mode="json")


def model_used(answer: Answer, job: ChatJob) -> ModelUsed:
    """Which model an answer is from, as far as its worker has said."""
    told = answer.told
    return ModelUsed(
        model_name=told.get("model_name") or job.model,
        inference_engine=told.get("inference_engine"),
        active_model_type=told.get("active_model_type") or job.model.removeprefix("qwen_"),
    )
