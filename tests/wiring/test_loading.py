"""The cache of built models: one entry for each value of the settings that shape them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, load_settings
from ourvidz.testing import CallbackRecorder, eager
from ourvidz.wiring import loading
from ourvidz.wiring.models import build

pytestmark = pytest.mark.model

FAMILIES = ("sdxl", "wan", "chat")


class Nothing:
    """Stands in for models."""


def build_nothing(settings: Settings, family: str) -> Nothing:
    """A builder, named by `OURVIDZ_MODELS`."""
    return Nothing()


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_cache", OrderedDict())


def settings(**variables: Any) -> Settings:
    return load_settings(_env_file=None, **variables)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build nothing, whatever the settings name."""
    monkeypatch.setattr(loading, "_build", build_nothing)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_that_a_builder_reads_is_in_the_key(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is left out would be ignored after the first job of a process."""
    read: set[str] = set()
    read_attribute = Settings.__getattribute__

    def record(self: Settings, name: str) -> Any:
        if name in Settings.model_fields:
            read.add(name)
        return read_attribute(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Settings, "__getattribute__", record)
        build(settings(OURVIDZ_WAN_CACHE="first_block"), family)
        needed = set(read)
        read.clear()
        loading.cache_key(settings(OURVIDZ_WAN_CACHE="first_block"), family)
        in_key = set(read)
    assert needed <= in_key | {"models"}
    assert needed


def test_models_are_built_once_for_equal_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the settings differ in what does not shape them."""
    stand_in(monkeypatch)
    one, other = settings(), settings(OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_CHAT_BATCH=2)
    for family in FAMILIES:
        assert loading.loaded(one, family) is None
        assert loading.models(one, family) is loading.models(other, family)
        assert loading.loaded(other, family) is loading.models(one, family)


@pytest.mark.parametrize(
    ("family", "variables"),
    [
        ("sdxl", {"OURVIDZ_SDXL_FEW_STEPS": "lcm"}),
        ("sdxl", {"OURVIDZ_SDXL_MODEL": "/m/sdxl"}),
        ("sdxl", {"OURVIDZ_PREVIEWS": "false"}),
        ("wan", {"OURVIDZ_WAN_FEW_STEPS": "true"}),
        ("wan", {"OURVIDZ_WAN_CACHE": "first_block"}),
        ("chat", {"OURVIDZ_QWEN_BASE_URL": "http://127.0.0.1:1/v1"}),
    ],
)
def test_other_settings_have_other_models(
    monkeypatch: pytest.MonkeyPatch, family: str, variables: dict[str, str]
) -> None:
    """And going back to the first settings finds the first models."""
    stand_in(monkeypatch)
    first, second = settings(), settings(**variables)
    built = loading.models(first, family)
    assert loading.models(second, family) is not built
    assert loading.models(first, family) is built


def test_calibrations_of_another_state_directory_are_other_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Wan cache writes its calibrations there."""
    stand_in(monkeypatch)
    first = settings(OURVIDZ_WAN_CACHE="mag", OURVIDZ_STATE_DIR=tmp_path / "a")
    second = settings(OURVIDZ_WAN_CACHE="mag", OURVIDZ_STATE_DIR=tmp_path / "b")
    assert loading.models(first, "wan") is not loading.models(second, "wan")


def test_the_least_recently_used_models_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test session with many settings must not keep all of their models."""
    stand_in(monkeypatch)
    first = loading.models(settings(), "sdxl")
    for number in range(loading.CACHE_SIZE - 1):
        loading.models(settings(OURVIDZ_SDXL_MODEL=f"/m/{number}"), "sdxl")
    assert loading.models(settings(), "sdxl") is first
    loading.models(settings(OURVIDZ_SDXL_MODEL="/m/one-more"), "sdxl")
    assert loading.loaded(settings(), "sdxl") is first
    assert loading.loaded(settings(OURVIDZ_SDXL_MODEL="/m/0"), "sdxl") is None


def test_a_builder_that_does_not_exist_is_named() -> None:
    """The operator reads which variable is wrong."""
    with pytest.raises(SettingsError, match="OURVIDZ_MODELS: cannot load 'nowhere:build'"):
        loading.models(settings(OURVIDZ_MODELS="nowhere:build"), "sdxl")


@pytest.mark.parametrize("order", [("", "lcm"), ("lcm", "")])
def test_jobs_of_one_process_run_under_their_own_settings(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, order: tuple[str, str]
) -> None:
    """In either order: a few-step scheduler set for one test is not used by the next."""
    job = {"type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    stored: dict[str, bytes] = {}
    for few_steps in order:
        variables = {"OURVIDZ_SDXL_FEW_STEPS": few_steps} if few_steps else {}
        with eager(tmp_path / (few_steps or "plain"), ourvidz_callbacks, **variables) as system:
            config = {"steps": 2, "seed": 1, "width": 64, "height": 64}
            system.submit({**job, "id": few_steps or "plain", "config": config})
            (asset,) = system.record(few_steps or "plain").outcome.assets  # type: ignore[union-attr]
            stored[few_steps] = system.control.store.get(asset.key or "")
            models: Any = loading.loaded(system.control.settings, "sdxl")
            assert (models.info()["sdxl"]["few_steps"] or "") == few_steps
    assert stored[""] != stored["lcm"]


def test_a_child_imports_what_its_own_family_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has work: the builder, what the builder imports later, and the workflow."""
    (tmp_path / "own_models.py").write_text("asked = []\ndef preload(family): asked.append(family)\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_workflow.py").touch()
    monkeypatch.setattr(loading, "WORKFLOWS", {"wan": ("own_workflow",)})
    loading.preload(settings(OURVIDZ_MODELS="own_models:build"), "wan")
    assert sys.modules["own_models"].asked == ["wan"]
    assert "own_workflow" in sys.modules


@pytest.mark.parametrize("builder", ["tests.wiring.test_loading:build_nothing", "there_is_none:build"])
def test_a_builder_need_not_say_what_it_imports_later(builder: str) -> None:
    """One that cannot be imported is reported when it is needed, as a model that cannot be loaded."""
    loading.preload(settings(OURVIDZ_MODELS=builder), "sdxl")
