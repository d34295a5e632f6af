"""Which language models stay resident, given their size and the free memory."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import WorkerUnavailable
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.residency import (
    RESERVE_MIB,
    RETRY_DELAY_S,
    STARTUP_WAIT_S,
    ResidencyPolicy,
    ResidentTextModels,
    TextModel,
)

NEEDS_MIB = 5000


def packaged_models(*, free_mib: int | None, policy: ResidencyPolicy = "auto") -> ResidentTextModels:
    """The packaged models, declared as large."""
    return ResidentTextModels(
        {
            "qwen_instruct": TextModel(QwenPipeline(find_qwen(None, "instruct"), "instruct"), NEEDS_MIB),
            "qwen_base": TextModel(QwenPipeline(find_qwen(None, "base"), "base"), NEEDS_MIB),
        },
        policy=policy,
        free_mib=lambda: free_mib,
    )


def loaded_names(models: ResidentTextModels) -> list[str]:
    return [name for name, info in models.info().items() if info["loaded"]]


@pytest.mark.parametrize(
    ("free_mib", "policy", "expected"),
    [
        (None, "auto", ["qwen_instruct", "qwen_base"]),
        (NEEDS_MIB + RESERVE_MIB, "auto", ["qwen_instruct", "qwen_base"]),
        (NEEDS_MIB + RESERVE_MIB - 1, "auto", ["qwen_instruct"]),
        (0, "always", ["qwen_instruct", "qwen_base"]),
        (None, "never", ["qwen_instruct"]),
    ],
)
def test_a_second_model_is_loaded_if_it_fits(
    free_mib: int | None, policy: ResidencyPolicy, expected: list[str]
) -> None:
    """The first model is loaded whatever the free memory: a worker needs at least one."""
    models = packaged_models(free_mib=free_mib, policy=policy)
    models.warm()
    assert loaded_names(models) == expected


def test_a_requested_model_replaces_the_resident_one_if_both_do_not_fit() -> None:
    """The resident model stays until another one is requested."""
    models = packaged_models(free_mib=0)
    base = models.get("qwen_base")
    assert loaded_names(models) == ["qwen_base"]
    assert models.get("qwen_base") is base
    models.get("qwen_instruct")
    assert loaded_names(models) == ["qwen_instruct"]


class FakeRemotePipeline:
    """A remote text pipeline whose first `failures` loads fail."""

    def __init__(self, failures: int = 0) -> None:
        self.loads = 0
        self.loaded = False
        self.failures = failures

    def load(self) -> None:
        self.loads += 1
        if self.loads <= self.failures:
            raise WorkerUnavailable("cannot be reached")
        self.loaded = True

    def unload(self) -> None:
        self.loaded = False

    def info(self) -> dict[str, Any]:
        return {"loaded": self.loaded, "name": "large"}

    def new_decoder(self) -> BatchDecoder:
        raise AssertionError("no text is decoded in these tests")


@pytest.mark.parametrize("policy", ["auto", "never"])
def test_a_remote_model_needs_no_memory(policy: ResidencyPolicy) -> None:
    """It is loaded, and stays, beside any local model."""
    remote = FakeRemotePipeline()
    models = ResidentTextModels(
        {
            "qwen_instruct": TextModel(QwenPipeline(find_qwen(None, "instruct"), "instruct"), NEEDS_MIB),
            "qwen_base": TextModel(remote, needs_mib=0),
        },
        policy=policy,
        free_mib=lambda: 0,
    )
    models.warm()
    assert loaded_names(models) == ["qwen_instruct", "qwen_base"]
    models.get("qwen_base")
    assert remote.loads == 1


def test_startup_waits_for_a_remote_server() -> None:
    """A server needs minutes to load its model after a restart; a worker that exits would serve nobody."""
    sleeps: list[float] = []
    names = ("qwen_instruct", "qwen_base")
    servers = {name: TextModel(FakeRemotePipeline(failures=3), needs_mib=0) for name in names}
    models = ResidentTextModels(
        servers, policy="auto", free_mib=lambda: None, clock=lambda: sum(sleeps), sleep=sleeps.append
    )
    models.warm()
    assert loaded_names(models) == ["qwen_instruct", "qwen_base"]
    assert sleeps == [RETRY_DELAY_S] * 6


def test_startup_gives_up_on_a_server_that_never_answers() -> None:
    """The error then tells the operator why the worker takes no jobs."""
    sleeps: list[float] = []
    server = {"qwen_instruct": TextModel(FakeRemotePipeline(failures=10_000), needs_mib=0)}
    models = ResidentTextModels(
        server, policy="auto", free_mib=lambda: None, clock=lambda: sum(sleeps), sleep=sleeps.append
    )
    with pytest.raises(WorkerUnavailable):
        models.warm()
    assert sum(sleeps) == pytest.approx(STARTUP_WAIT_S, abs=RETRY_DELAY_S)
