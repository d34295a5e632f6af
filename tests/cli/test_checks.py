"""The checks for storage, signing and endpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.cli import checks
from ourvidz.settings import Settings

MakeSettings = Callable[..., Settings]


def test_storage_that_cannot_be_written_is_a_failure(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Otherwise the first job would find it, after its whole generation time."""
    (tmp_path / "file").touch()
    check = checks.check_storage(make_settings(OURVIDZ_STORAGE_DIR=tmp_path / "file" / "assets"))
    assert check.status == "failed"
    assert "OURVIDZ_STORAGE_DIR" in check.fix


def test_the_signing_certificate_is_tried(
    make_settings: MakeSettings, tmp_path: Path, make_chain: Any
) -> None:
    """A worker refuses to start with an invalid certificate; without a certificate the check is skipped."""
    assert checks.check_signing(make_settings()).status == "skipped"
    check = checks.check_signing(make_settings(**make_chain().variables(tmp_path)))
    assert (check.status, check.reason.partition(", ")[2]) == ("ok", "es256, no timestamps")
    invalid = checks.check_signing(make_settings(**make_chain(days=9).variables(tmp_path)))
    assert invalid.status == "failed"
    assert "OURVIDZ_C2PA_CERTIFICATE" in invalid.reason


def test_an_unreachable_callback_receiver_is_a_failure(make_settings: MakeSettings, unused_port: int) -> None:
    """Callers learn the result of a job only from its callback."""
    check = checks.check_callbacks(make_settings(SUPABASE_URL=f"http://127.0.0.1:{unused_port}"))
    assert check.status == "failed"
    assert "/functions/v1/job-callback" in check.reason


def test_any_status_of_a_callback_receiver_passes(make_settings: MakeSettings, model_server: str) -> None:
    """Only a real callback may be posted there, so an answer of any kind must do."""
    check = checks.check_callbacks(make_settings(SUPABASE_URL=model_server.removesuffix("/v1")))
    assert (check.status, "(405)" in check.reason) == ("ok", True)


def test_a_proxy_of_the_environment_does_not_decide_what_is_reachable(
    make_settings: MakeSettings, model_server: str, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers send callbacks without it, so that a check through the proxy says nothing about them."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    url = model_server.removesuffix("/v1")
    assert checks.check_callbacks(make_settings(SUPABASE_URL=url)).status == "ok"


def test_an_unreachable_moderation_endpoint_is_a_failure(
    make_settings: MakeSettings, model_server: str, unused_port: int
) -> None:
    """Every job that asks for moderation would fail."""
    variable = "OURVIDZ_MODERATION_URL"
    assert checks.check_moderation(make_settings()).status == "skipped"
    assert checks.check_moderation(make_settings(**{variable: f"{model_server}/moderations"})).status == "ok"
    failure = checks.check_moderation(make_settings(**{variable: f"http://127.0.0.1:{unused_port}/v1"}))
    assert (failure.status, variable in failure.fix) == ("failed", True)


def test_the_classifier_of_pictures_is_loaded_and_tried(
    make_settings: MakeSettings, model_server: str, unused_port: int
) -> None:
    """Without one the check says that nobody judges pictures."""
    variable = "OURVIDZ_IMAGE_CLASSIFIER"

    def check(value: str | None = None, **variables: str) -> checks.Check:
        named = {} if value is None else {variable: value}
        return checks.check_image_classifier(make_settings(**named, **variables))

    assert (check().status, "not judged" in check().reason) == ("skipped", True)
    assert check("tests.shape_classifier:refuse_stars").status == "ok"
    assert check(f"{model_server}/moderations").status == "ok"
    for value in ("tests.shape_classifier:nothing", "builtins:len", "builtins:print"):
        failure = check(value)
        assert (failure.status, variable in failure.fix) == ("failed", True)
    away = check(f"http://127.0.0.1:{unused_port}/v1", OURVIDZ_IMAGE_CLASSIFIER_FAILS="open")
    assert (away.status, "unjudged" in away.fix) == ("failed", True)


def test_keys_that_can_be_guessed_are_found_before_the_shim_refuses_them(make_settings: MakeSettings) -> None:
    """After an upgrade the operator should see it before the shim stops."""
    assert checks.check_keys(make_settings()).status == "skipped"
    missing = checks.check_keys(make_settings(OURVIDZ_PUBLIC_URL="https://jobs.example"))
    assert (missing.status, "set OURVIDZ_API_KEYS, or OURVIDZ_REQUIRE_KEYS=1" in missing.reason) == (
        "skipped",
        True,
    )
    keys = {"OURVIDZ_API_KEYS": "ops:short:jobs", "OURVIDZ_HOST": "0.0.0.0"}
    failure = checks.check_keys(make_settings(**keys))
    assert (failure.status, "short" in failure.reason) == ("failed", False)
    keys["OURVIDZ_API_KEYS"] = "ops:c0ffee5eedfadedfacade0123456789ab:jobs"
    assert checks.check_keys(make_settings(**keys)).status == "ok"
