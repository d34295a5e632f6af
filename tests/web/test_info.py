"""What callers ask before they send anything."""

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


def test_the_enhancement_info_has_the_fields_callers_read(shim) -> None:
    """Also before any worker is here."""
    found = shim.client.get("/enhancement/info").json()
    assert found.keys() == {"worker_type", "models_available", "capabilities", "model_info"}
    assert found["worker_type"] == "pure_inference_engine"
    assert found["models_available"] == ["qwen_instruct", "qwen_base"]
    assert found["capabilities"]["max_tokens"] == 2048
    flags = ("chat_conversation", "prompt_enhancement", "no_hardcoded_prompts", "pure_inference")
    assert [found["capabilities"][flag] for flag in flags] == [True] * 4
    assert found["model_info"] == {"instruct_model": None, "base_model": None, "enhancement_method": "qwen"}
    shim.appear(**CHAT)
    models = shim.client.get("/enhancement/info").json()["model_info"]
    assert (models["instruct_model"], models["base_model"]) == ("tiny-qwen", "tiny-qwen-base")
    assert models["qwen_base"] == CHAT["detail"]["info"]["qwen_base"]


def test_the_worker_info_names_its_job_types(shim) -> None:
    """And how many workers there are."""
    shim.appear(**CHAT)
    shim.appear()
    found = shim.client.get("/worker/info").json()
    assert (found["workers"], found["queue"]) == (1, "chat_queue")
    assert found["job_types"] == ["chat_enhance", "chat_conversation", "chat_unrestricted", "admin_utilities"]


def test_the_chats_health_is_the_chat_workers(shim, monkeypatch) -> None:
    """Another worker does not make it healthy."""
    shim.appear()
    assert shim.client.get("/chat/health").json() == {
        "status": "degraded", "qwen_model_loaded": False, "workers": 0, "queue_depth": 0,
    }  # fmt: skip
    shim.appear(**CHAT)
    assert shim.client.get("/chat/health").json()["status"] == "healthy"

    def away() -> None:
        raise WorkerUnavailable("away")

    monkeypatch.setattr(shim.ledger, "workers", away)
    assert shim.client.get("/chat/health").json()["queue_depth"] is None


def test_the_other_documents_know_the_chat_worker(shim) -> None:
    """Its two models have a row each."""
    shim.appear(**CHAT)
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
    "OURVIDZ_MODERATION_URL": "https://judge.example/v1/moderations",
    "OURVIDZ_MODERATION_KEY": "moderation-secret",
    "UPSTASH_REDIS_REST_URL": "https://redis.example",
    "UPSTASH_REDIS_REST_TOKEN": "redis-secret",
}


def test_the_environment_tells_paths_and_versions(shim) -> None:
    """What somebody who looks for a wrong checkpoint needs."""
    found = shim.client.get("/debug/env").json()
    assert found.keys() == {"wan_generate_path", "model_paths", "versions"}
    assert found["model_paths"].keys() == {"wan", "qwen"}
    assert found["versions"]["celery"] == version("celery")


@pytest.mark.parametrize("path", ["/debug/env", "/enhancement/info", "/worker/info", "/health", "/status"])
def test_no_secret_is_told(open_shim, path) -> None:
    """Not to holders of a key either; strangers see no paths."""
    shim = open_shim(**SECRETS)
    answer = shim.client.get(path, headers={"X-API-Key": "key-secret"})
    assert answer.status_code == 200
    assert "secret" not in answer.text
    assert shim.client.get("/debug/env").status_code == 401
