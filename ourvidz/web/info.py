"""Routes that describe the installation: its text models, what they can do, and its environment."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ourvidz import __version__
from ourvidz.errors import Forbidden, WorkerUnavailable
from ourvidz.jobs import ranges
from ourvidz.jobs.catalog import QUEUES, Family, of_family
from ourvidz.jobs.chats import MODELS
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.records.record import Worker
from ourvidz.web.auth import is_informed
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["health"])
protected_router = APIRouter(tags=["health"])
"""Routes that need a key: they contain no secret, but paths and versions."""

FAMILY: Family = "chat"
LIBRARIES = (
    *("celery", "redis", "fastapi", "torch", "diffusers", "transformers", "tokenizers", "compel"),
    *("safetensors", "av", "pillow", "numpy"),
)


class TextCapabilities(BaseModel):
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
    messages: int = ranges.MAX_MESSAGES
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
    capabilities: TextCapabilities
    model_info: TextModels


class WorkerInfo(EnhancementInfo):
    """The same with the job types, and the number of live chat workers."""

    worker_version: str
    job_types: list[str]
    queue: str
    workers: int


class ChatHealth(BaseModel):
    """Health of the chat worker; `queue_depth` is null when the ledger cannot be reached."""

    status: Literal["healthy", "degraded"]
    qwen_model_loaded: bool
    workers: int
    queue_depth: int | None


class ModelPaths(BaseModel):
    """Paths of the checkpoints: the configured ones, else the packaged ones."""

    wan: str
    qwen: str


class Environment(BaseModel):
    """Paths and versions of this process. `wan_generate_path` is null where the script is not installed."""

    wan_generate_path: str | None
    model_paths: ModelPaths
    versions: dict[str, str]


@router.get("/enhancement/info", responses=documented(429, 503))
def enhancement_info(request: Request) -> EnhancementInfo:
    """Read which models enhance prompts, and what they can do. If keys are configured, only callers with one
    see the checkpoints."""
    workers = control.current().ledger.online_workers(family=FAMILY)
    return EnhancementInfo(**_text_models(workers if is_informed(request) else []))


@router.get("/worker/info", responses=documented(429, 503))
def worker_info(request: Request) -> WorkerInfo:
    """Read what the chat workers serve. If keys are configured, only callers with one see the checkpoints."""
    workers = control.current().ledger.online_workers(family=FAMILY)
    return WorkerInfo(
        **_text_models(workers if is_informed(request) else []),
        worker_version=__version__,
        job_types=[row.name for row in of_family(FAMILY)],
        queue=QUEUES[FAMILY],
        workers=len(workers),
    )


@router.get("/chat/health", responses=documented(429))
def chat_health() -> ChatHealth:
    """Read whether a chat worker would take a request now."""
    try:
        ledger = control.current().ledger
        workers, depth = ledger.online_workers(family=FAMILY), ledger.queue_depth(QUEUES[FAMILY])
    except WorkerUnavailable:
        return ChatHealth(status="degraded", qwen_model_loaded=False, workers=0, queue_depth=None)
    loaded = any(FAMILY in worker.models for worker in workers)
    return ChatHealth(
        status="healthy" if loaded else "degraded",
        qwen_model_loaded=loaded,
        workers=len(workers),
        queue_depth=depth,
    )


@protected_router.get("/debug/env", responses=documented(401, 403))
def environment(request: Request) -> Environment:
    """Read paths and versions; never a secret."""
    if not is_informed(request):
        raise Forbidden("A key bound to users sees nothing of the installation.")
    settings = control.current().settings
    script = find_spec("wan_generate")
    libraries = {name: number for name in LIBRARIES if (number := _version(name)) is not None}
    return Environment(
        wan_generate_path=script.origin if script else None,
        model_paths=ModelPaths(
            wan=str(settings.wan_model or PACKAGED / "tiny-wan"),
            qwen=str(settings.qwen_model or PACKAGED / "tiny-qwen"),
        ),
        versions={"ourvidz": __version__, "python": platform.python_version(), **libraries},
    )


def _text_models(workers: list[Worker]) -> dict[str, Any]:
    reported = {
        name: info for worker in workers for name, info in worker.model_infos.items() if name in MODELS
    }
    return {
        "models_available": list(MODELS),
        "capabilities": TextCapabilities(moderation=control.current().settings.moderation_url is not None),
        "model_info": TextModels(
            instruct_model=reported.get("qwen_instruct", {}).get("name"),
            base_model=reported.get("qwen_base", {}).get("name"),
            **reported,
        ),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
