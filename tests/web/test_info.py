"""The routes that describe the installation."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from ourvidz.errors import WorkerUnavailable

CHAT: dict[str, Any] = {
    "id": "chat@host-cpu",
    "family": "chat",
    "queue": "chat_queue",
    "models": ("chat",),
    "detail": {
        "info": {
            "qwen_instruct": {"name": "tiny-qwen", "device": "cpu", "loaded": True},
            "qwen_base": {"name": "tiny-qwen-base", "device": "cpu", "loaded": False},
        }
    },
}


def test_the_enhancement_info_has_the_documented_fields(shim) -> None:
    """With and without a live chat worker."""
    document = shim.client.get("/enhancement/info").json()
    assert document.keys() == {"worker_type", "models_available", "capabilities", "model_info"}
    assert document["worker_type"] == "pure_inference_engine"
    assert document["models_available"] == ["qwen_instruct", "qwen_base"]
    assert document["capabilities"]["max_tokens"] == 2048
    flags = ("chat_conversation", "prompt_enhancement", "no_hardcoded_prompts", "pure_inference")
    assert [document["capabilities"][flag] for flag in flags] == [True] * 4
    assert document["model_info"] == {
        "instruct_model": None,
        "base_model": None,
        "enhancement_method": "qwen",
    }
    shim.register_worker(**CHAT)
    models = shim.client.get("/enhancement/info").json()["model_info"]
    assert (models["instruct_model"], models["base_model"]) == ("tiny-qwen", "tiny-qwen-base")
    assert models["qwen_base"] == CHAT["detail"]["info"]["qwen_base"]


def test_the_worker_info_lists_job_types_and_counts_workers(shim) -> None:
    """Only chat workers count."""
    shim.register_worker(**CHAT)
    shim.register_worker()
    document = shim.client.get("/worker/info").json()
    assert (document["workers"], document["queue"]) == (1, "chat_queue")
    assert document["job_types"] == [
        "chat_enhance",
        "chat_conversation",
        "chat_unrestricted",
        "admin_utilities",
    ]


def test_chat_health_depends_on_the_chat_worker_only(shim, monkeypatch) -> None:
    """A live SDXL worker does not make it healthy."""
    shim.register_worker()
    assert shim.client.get("/chat/health").json() == {
        "status": "degraded", "qwen_model_loaded": False, "workers": 0, "queue_depth": 0,
    }  # fmt: skip
    shim.register_worker(**CHAT)
    assert shim.client.get("/chat/health").json()["status"] == "healthy"

    def unreachable(**_: object) -> None:
        raise WorkerUnavailable("away")

    monkeypatch.setattr(shim.ledger, "online_workers", unreachable)
    assert shim.client.get("/chat/health").json()["queue_depth"] is None


def test_health_models_and_status_include_the_chat_worker(shim) -> None:
    """Each of its two models has a row."""
    shim.register_worker(**CHAT)
    assert shim.client.get("/health").json()["qwen_model_loaded"] is True
    rows = shim.client.get("/model/info").json()["models"]
    assert [(row["family"], row["info"]["name"]) for row in rows] == [
        ("chat", "tiny-qwen"),
        ("chat", "tiny-qwen-base"),
    ]
    status = shim.client.get("/status?worker_type=chat").json()
    assert (status["model"], status["i2i_pipeline"], status["thumbnail_generation"]) == (
        "tiny-qwen", None, False,
    )  # fmt: skip
    assert status["quality_tiers"] == []
    assert status["job_types"].keys() == {"chat_enhance", "chat_conversation", "chat_unrestricted"}


SECRETS = {
    "OURVIDZ_API_KEYS": "a:key-secret:jobs",
    "SUPABASE_URL": "https://project.example",
    "SUPABASE_SERVICE_KEY": "service-secret",
    "JOB_CALLBACK_SECRET": "callback-secret",
    "HF_TOKEN": "hub-secret",
    "OURVIDZ_MODERATION_URL": "https://moderation.example/v1/moderations",
    "OURVIDZ_MODERATION_KEY": "moderation-secret",
    "UPSTASH_REDIS_REST_URL": "https://redis.example",
    "UPSTASH_REDIS_REST_TOKEN": "redis-secret",
}


def test_the_environment_has_paths_and_versions(shim) -> None:
    """An operator finds a wrong checkpoint path here."""
    document = shim.client.get("/debug/env").json()
    assert document.keys() == {"wan_generate_path", "model_paths", "versions"}
    assert document["model_paths"].keys() == {"wan", "qwen"}
    assert document["versions"]["celery"] == version("celery")


@pytest.mark.parametrize("path", ["/debug/env", "/enhancement/info", "/worker/info", "/health", "/status"])
def test_no_document_contains_a_secret(open_shim, path) -> None:
    """Not even with a key; and without one no paths."""
    shim = open_shim(**SECRETS)
    answer = shim.client.get(path, headers={"X-API-Key": "key-secret"})
    assert answer.status_code == 200
    assert "secret" not in answer.text
    assert shim.client.get("/debug/env").status_code == 401


SECRET_HOST, SECRET_MODEL, SECRET_DEVICE = "gpu-host-17", "our-own-checkpoint", "cuda:0 (NVIDIA L40)"
HIDDEN = {
    "id": f"sdxl@{SECRET_HOST}-gpu0",
    "host": SECRET_HOST,
    "detail": {"info": {"sdxl": {"name": SECRET_MODEL, "device": SECRET_DEVICE}}},
}
HIDDEN_CHAT = CHAT | {
    "id": f"chat@{SECRET_HOST}-gpu1",
    "host": SECRET_HOST,
    "detail": {"info": {"qwen_instruct": {"name": SECRET_MODEL, "device": SECRET_DEVICE}}},
}
TOLD = {"/health", "/status", "/status?worker_type=chat", "/model/info", "/worker/info", "/enhancement/info"}
"""Paths whose answers name hosts or checkpoints."""
PUBLIC = {
    *TOLD,
    "/",
    "/health/live",
    "/health/ready",
    "/chat/health",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/none",
}


def shown(shim, headers: dict[str, str] | None = None) -> dict[str, bool]:
    """Path → whether its answer names the host, the device or the checkpoint."""
    secrets = (SECRET_HOST, SECRET_MODEL, SECRET_DEVICE)
    answers = {path: shim.client.get(path, headers=headers).text for path in PUBLIC}
    return {path: any(secret in text for secret in secrets) for path, text in answers.items()}


def test_a_keyed_shim_tells_strangers_nothing_of_hosts_and_models(open_shim, monkeypatch) -> None:
    """Who knows the hosts and checkpoints knows what to attack; probes need only that it works."""
    monkeypatch.setattr("ourvidz.web.health._from_this_machine", lambda _: True)
    keys = {"OURVIDZ_API_KEYS": "shop:s3cret:jobs"}
    for variables, headers, expected in (
        (keys, {}, set()),
        (keys, {"X-API-Key": "wrong"}, set()),
        (keys, {"X-API-Key": "s3cret"}, TOLD),
        (keys | {"OURVIDZ_PUBLIC_INFO": True}, {}, TOLD - {"/health"}),
        ({}, {}, TOLD),
    ):
        shim = open_shim(**variables)
        shim.register_worker(**HIDDEN)
        shim.register_worker(**HIDDEN_CHAT)
        assert expected <= {path for path, names in shown(shim, headers).items() if names} <= TOLD, headers
