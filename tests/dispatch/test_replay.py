"""Replays: a job runs again beside the original, and the receipts tell whether anything differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ourvidz import dispatch
from ourvidz.cli.replay import replay as command
from ourvidz.errors import Conflict, NotFound
from ourvidz.testing import Eager
from ourvidz.wiring import control

pytestmark = pytest.mark.model

IMAGE = {
    "id": "one",
    "type": "sdxl_image_fast",
    "prompt": "a hill above a lake",
    "user_id": "me",
    "config": {"steps": 2, "width": 64, "height": 64, "num_images": 3},
}
CLIP = IMAGE | {"type": "video_fast", "config": {"steps": 2, "width": 64, "height": 64, "frames": 5}}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def receipt(system: Eager, job_id: str) -> dict[str, Any]:
    found = dispatch.receipt_of(system.record(job_id))
    assert found is not None
    return found


@contextmanager
def changed_settings(system: Eager, **changes: Any) -> Iterator[None]:
    """The same installation after its operator has changed settings."""
    settings = system.control.settings.model_copy(update=changes)
    with control.using(control.build(settings, ledger=system.control.ledger)):
        yield


def test_a_receipt_names_everything_that_the_pixels_depend_on(ourvidz_eager: Eager) -> None:
    """It is in the callback, so a caller can keep it longer than the record."""
    ourvidz_eager.submit(IMAGE)
    sent = ourvidz_eager.callbacks.of("one")[-1].payload["metadata"]["receipt"]
    assert sent == receipt(ourvidz_eager, "one")
    assert sent["checkpoint"].startswith("sha256:")
    assert set(sent["libraries"]) >= {"torch", "diffusers", "transformers"}
    assert sent["dtype"] == "float32"
    assert sent["device"].startswith("cpu ")
    seed = ourvidz_eager.document("one")["seed"]
    assert sent["seeds"] == [seed, seed + 1, seed + 2]
    assert len(set(sent["results"])) == 3


@pytest.mark.parametrize("payload", [IMAGE, CLIP], ids=["image", "clip"])
def test_a_replay_is_identical_and_disturbs_nothing(ourvidz_eager: Eager, payload: dict[str, Any]) -> None:
    """It has the drawn seed of the original, files of its own, and no callbacks."""
    ourvidz_eager.submit(payload)
    before = ourvidz_eager.record("one")
    result = run("one", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["identical"], document["differences"]) == (True, [])
    replay = ourvidz_eager.record(document["replay_id"])
    assert ourvidz_eager.callbacks.of(replay.job_id) == []
    assert replay.callback_metadata["replay_of"] == "one"
    assert ourvidz_eager.record("one") == before
    assert before.outcome is not None
    assert replay.outcome is not None
    for one, other in zip(before.outcome.assets, replay.outcome.assets, strict=True):
        assert one.key != other.key
        store = ourvidz_eager.control.store
        assert store.get(str(one.key)) == store.get(str(other.key))
    assert "identical" in run("one").output


def test_a_replay_names_the_component_that_changed_the_pixels(ourvidz_eager: Eager) -> None:
    """Here the operator has chosen another scheduler since."""
    ourvidz_eager.submit(IMAGE)
    with changed_settings(ourvidz_eager, sdxl_scheduler="ddim"):
        result = run("one", "--json")
        table = run("one").output
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not document["identical"]
    [difference] = document["differences"]
    assert difference["component"] == "scheduler"
    assert difference["replayed"] == "DDIMScheduler"
    assert "different: scheduler" in table


def test_an_enhanced_job_is_replayed_with_the_prompt_it_got(ourvidz_eager: Eager) -> None:
    """Enhancement is sampled: another prompt would say nothing about the picture."""
    ourvidz_eager.submit(
        IMAGE | {"type": "image7b_fast_enhanced", "config": {"steps": 2, "width": 64, "height": 64}}
    )
    document = json.loads(run("one", "--json").stdout)
    outcome = ourvidz_eager.record("one").outcome
    assert outcome is not None
    assert ourvidz_eager.document(document["replay_id"])["prompt"] == outcome.enhanced_prompt
    assert document["identical"]


def test_a_replay_of_a_job_that_accepts_reuse_is_computed(ourvidz_eager: Eager) -> None:
    """Otherwise the original would be compared with itself."""
    ourvidz_eager.submit(
        IMAGE | {"config": {"steps": 2, "width": 64, "height": 64, "seed": 3, "reuse": True}}
    )
    document = json.loads(run("one", "--json").stdout)
    outcome = ourvidz_eager.record(document["replay_id"]).outcome
    assert outcome is not None
    assert "reused_from" not in outcome.metadata
    assert outcome.metadata["gpu_seconds"]["total"] > 0


def test_what_cannot_be_replayed_is_refused(ourvidz_eager: Eager) -> None:
    """A text has no receipt; an unknown job is unknown."""
    ourvidz_eager.submit(
        {"id": "text", "type": "chat_conversation", "messages": [{"role": "user", "content": "hello"}]}
    )
    with pytest.raises(Conflict, match="no receipt"):
        dispatch.replay("text")
    with pytest.raises(NotFound):
        dispatch.replay("never")


def test_a_replay_that_fails_is_reported(ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not a difference of the pixels."""
    ourvidz_eager.submit(IMAGE)
    with changed_settings(ourvidz_eager, sdxl_model=ourvidz_eager.storage / "gone"):
        result = run("one")
    assert result.exit_code == 1
    assert "failed" in result.output
