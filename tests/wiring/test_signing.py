"""From the settings to a signer, or to the variable that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import SettingsError
from ourvidz.media.images import encode_png
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import signing


def chosen(**variables: str) -> Settings:
    return load_settings(_env_file=None, **variables)


def refused(**variables: str) -> SettingsError:
    with pytest.raises(SettingsError) as wrong:
        signing.signer(chosen(**variables))
    assert "\n" not in wrong.value.message
    return wrong.value


def test_without_a_certificate_nothing_signs() -> None:
    """It is an option, and most installations have no certificate."""
    assert signing.signer(chosen()) is None


def test_a_good_certificate_makes_a_signer(tmp_path: Path, make_chain: Any) -> None:
    """What was tried is what signs."""
    from PIL import Image

    signer = signing.signer(chosen(**make_chain().variables(tmp_path)))
    assert signer is not None
    picture = encode_png(Image.new("RGB", (8, 8)))
    assert len(signer.sign(picture, "image/png", "trainedAlgorithmicMedia")) > len(picture)


@pytest.mark.parametrize("variable", ["OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"])
def test_a_file_that_is_not_there_is_named_with_its_variable(
    tmp_path: Path, make_chain: Any, variable: str
) -> None:
    """The last line of the log is all an operator reads."""
    gone = {variable: str(tmp_path / "gone.pem")}
    wrong = refused(**make_chain().variables(tmp_path) | gone)
    assert wrong.message.startswith(f"{variable}: {tmp_path / 'gone.pem'} cannot be read")


@pytest.mark.parametrize("variable", ["OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"])
def test_a_file_with_something_else_in_it_is_named_with_its_variable(
    tmp_path: Path, make_chain: Any, variable: str
) -> None:
    """The two are easily taken for one another."""
    variables = make_chain().variables(tmp_path)
    (tmp_path / "hello.pem").write_text("-----BEGIN EC PRIVATE KEY-----\nhello\n")
    wrong = refused(**variables | {variable: str(tmp_path / "hello.pem")})
    assert wrong.message.startswith(f"{variable}: {tmp_path / 'hello.pem'} does not hold")


@pytest.mark.parametrize("reason", ["another key", "run out", "another algorithm"])
def test_a_pair_that_cannot_sign_is_refused(tmp_path: Path, make_chain: Any, reason: str) -> None:
    """Else every asset would be stored unsigned until somebody noticed."""
    variables = make_chain(days=9 if reason == "run out" else 100).variables(tmp_path)
    if reason == "another key":
        Path(variables["OURVIDZ_C2PA_KEY"]).write_bytes(make_chain().key)
    if reason == "another algorithm":
        variables["OURVIDZ_C2PA_ALGORITHM"] = "ps256"
    wrong = refused(**variables)
    assert wrong.message.startswith("OURVIDZ_C2PA_CERTIFICATE and OURVIDZ_C2PA_KEY cannot sign: ")


def test_an_authority_that_is_away_keeps_no_worker_from_starting(tmp_path: Path, make_chain: Any) -> None:
    """The certificate is tried without it: generation goes on, and what is unsigned is counted."""
    away = {"OURVIDZ_C2PA_TIMESTAMP_URL": "http://127.0.0.1:9/"}
    assert signing.signer(chosen(**make_chain().variables(tmp_path), **away)) is not None


def test_without_the_library_a_certificate_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who configures a certificate wants manifests, not silence."""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    one = str(tmp_path / "one.pem")
    wrong = refused(OURVIDZ_C2PA_CERTIFICATE=one, OURVIDZ_C2PA_KEY=one)
    assert wrong.message.startswith("OURVIDZ_C2PA_CERTIFICATE: ")
    assert "pip install 'ourvidz[c2pa]'" in wrong.message
