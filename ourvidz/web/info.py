"""What this installation can do and what it runs on, for callers that ask before they send anything."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ourvidz import __version__
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs import ranges
from ourvidz.jobs.catalog import QUEUES, Family, of_family
from ourvidz.jobs.chats import MODELS
from ourvidz.ledger.record import Worker
from ourvidz.web.problems import documented
from ourvidz.wiring import control
from ourvidz.wiring.wording import PACKAGED

router = APIRouter(tags=["health"])
inside = APIRouter(tags=["health"])
"""For holders of a key: what it tells is no secret, but nothing for strangers."""

FAMILY: Family = "chat"
LIBRARIES = (
    *("celery", "redis", "fastapi", "torch", "diffusers", "transformers", "tokenizers", "compel"),
    *("safetensors", "av", "pillow", "numpy"),
)


class Abilities(BaseModel):
    """What text jobs may ask for. Numbers are the limits of one request.

    `no_hardcoded_prompts` and `pure_inference`: no prompt text is added and no parameter is changed.
    """

    chat_conversation: Literal[True] = True
    prompt_enhancement: Literal[True] = True
    no_hardcoded_prompts: Literal[True] = True
    pure_inference: Literal[True] = True
    chat: Literal[True] = True
    enhancement: Literal[True] = True
    streaming: Literal[True] = True
    openai_compatible: Literal[True] = True
    messages: int = ranges.MESSAGES
    characters: int = ranges.CONVERSATION_CHARS
    max_tokens: int = int(ranges.MAX_TOKENS.high)
    moderation: bool


class TextModels(BaseModel, extra="allow"):
    """The checkpoint of each model (null without a chat worker), and what the worker reported, by model name.

    `enhancement_method` is the `enhancement_strategy` of enhanced prompts.
    """

    instruct_model: str | None
    base_model: str | None
    enhancement_method: Literal["qwen"] = "qwen"


class EnhancementInfo(BaseModel):
    """Which models enhance prompts, and what they can do."""

    worker_type: Literal["pure_inference_engine"] = "pure_inference_engine"
    models_available: list[str]
    capabilities: Abilities
    model_info: TextModels


class WorkerInfo(EnhancementInfo):
    """The same with the job types, and how many chat workers are here."""

    worker_version: str
    job_types: list[str]
    queue: str
    workers: int


class ChatHealth(BaseModel):
    """How the chat worker is; `queue_depth` is null without a ledger."""

    status: Literal["healthy", "degraded"]
    qwen_model_loaded: bool
    workers: int
    queue_depth: int | None


class ModelPaths(BaseModel):
    """Where the checkpoints lie: as configured, else the packaged ones."""

    wan: str
    qwen: str


class Environment(BaseModel):
    """What this process runs on. `wan_generate_path` is null where the script is not installed."""

    wan_generate_path: str | None
    model_paths: ModelPaths
    versions: dict[str, str]


@router.get("/enhancement/info", responses=documented(503))
def enhancement_info() -> EnhancementInfo:
    """What enhances prompts here."""
    return EnhancementInfo(**_texts(_chatting()))


@router.get("/worker/info", responses=documented(503))
def worker_info() -> WorkerInfo:
    """What the chat worker serves."""
    here = _chatting()
    return WorkerInfo(
        **_texts(here),
        worker_version=__version__,
        job_types=[row.name for row in of_family(FAMILY)],
        queue=QUEUES[FAMILY],
        workers=len(here),
    )


@router.get("/chat/health")
def chat_health() -> ChatHealth:
    """Whether somebody would answer."""
    try:
        here, depth = _chatting(), control.current().ledger.depth(QUEUES[FAMILY])
    except WorkerUnavailable:
        return ChatHealth(status="degraded", qwen_model_loaded=False, workers=0, queue_depth=None)
    loaded = any(FAMILY in worker.models for worker in here)
    return ChatHealth(
        status="healthy" if loaded else "degraded",
        qwen_model_loaded=loaded,
        workers=len(here),
        queue_depth=depth,
    )


@inside.get("/debug/env", responses=documented(401, 403))
def environment() -> Environment:
    """Paths and versions, never a secret."""
    chosen = control.current().settings
    script = find_spec("wan_generate")
    found = {name: number for name in LIBRARIES if (number := _version(name)) is not None}
    return Environment(
        wan_generate_path=script.origin if script else None,
        model_paths=ModelPaths(
            wan=str(chosen.wan_model or PACKAGED / "tiny-wan"),
            qwen=str(chosen.qwen_model or PACKAGED / "tiny-qwen"),
        ),
        versions={"ourvidz": __version__, "python": platform.python_version(), **found},
    )


def _texts(workers: list[Worker]) -> dict[str, Any]:
    reported = {name: info for worker in workers for name, info in worker.detail.get("info", {}).items()}
    return {
        "models_available": list(MODELS),
        "capabilities": Abilities(moderation=control.current().settings.moderation_url is not None),
        "model_info": TextModels(
            instruct_model=reported.get("qwen_instruct", {}).get("name"),
            base_model=reported.get("qwen_base", {}).get("name"),
            **reported,
        ),
    }


def _chatting() -> list[Worker]:
    return [w for w in control.current().ledger.workers() if w.family == FAMILY and w.state != "offline"]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
