"""The signer that the settings configure, and the errors that name a wrong variable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import SettingsError
from ourvidz.media.images import encode_png
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import signing


def settings(**variables: str) -> Settings:
    return load_settings(_env_file=None, **variables)


def refusal(**variables: str) -> SettingsError:
    """The error of these variables; its message is one line."""
    with pytest.raises(SettingsError) as wrong:
        signing.signer(settings(**variables))
    assert "\n" not in wrong.value.message
    return wrong.value


def test_without_a_certificate_there_is_no_signer() -> None:
    """Most installations have no certificate."""
    assert signing.signer(settings()) is None


def test_a_valid_certificate_makes_a_signer(tmp_path: Path, make_chain: Any) -> None:
    """It signs a test image first."""
    from PIL import Image

    signer = signing.signer(settings(**make_chain().variables(tmp_path)))
    assert signer is not None
    image = encode_png(Image.new("RGB", (8, 8)))
    assert len(signer.sign(image, "image/png", "trainedAlgorithmicMedia")) > len(image)


@pytest.mark.parametrize("variable", ["OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"])
def test_a_missing_file_is_named_with_its_variable(tmp_path: Path, make_chain: Any, variable: str) -> None:
    """An operator may read only the last line of the log."""
    gone = {variable: str(tmp_path / "gone.pem")}
    error = refusal(**make_chain().variables(tmp_path) | gone)
    assert error.message.startswith(f"{variable}: {tmp_path / 'gone.pem'} cannot be read")


@pytest.mark.parametrize("variable", ["OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"])
def test_a_file_with_other_contents_is_named_with_its_variable(
    tmp_path: Path, make_chain: Any, variable: str
) -> None:
    """Certificate and key are easily swapped."""
    variables = make_chain().variables(tmp_path)
    (tmp_path / "hello.pem").write_text("-----BEGIN EC PRIVATE KEY-----\nhello\n")
    error = refusal(**variables | {variable: str(tmp_path / "hello.pem")})
    assert error.message.startswith(f"{variable}: {tmp_path / 'hello.pem'} does not hold")


@pytest.mark.parametrize("reason", ["another key", "run out", "another algorithm"])
def test_a_pair_that_cannot_sign_is_refused(tmp_path: Path, make_chain: Any, reason: str) -> None:
    """Else every asset would be stored unsigned, unnoticed."""
    variables = make_chain(days=9 if reason == "run out" else 100).variables(tmp_path)
    if reason == "another key":
        Path(variables["OURVIDZ_C2PA_KEY"]).write_bytes(make_chain().key)
    if reason == "another algorithm":
        variables["OURVIDZ_C2PA_ALGORITHM"] = "ps256"
    error = refusal(**variables)
    assert error.message.startswith("OURVIDZ_C2PA_CERTIFICATE and OURVIDZ_C2PA_KEY cannot sign: ")


def test_an_unreachable_time_stamp_authority_keeps_no_worker_from_starting(
    tmp_path: Path, make_chain: Any
) -> None:
    """The certificate is tested without it: generation goes on, and unsigned assets are counted."""
    away = {"OURVIDZ_C2PA_TIMESTAMP_URL": "http://127.0.0.1:9/"}
    assert signing.signer(settings(**make_chain().variables(tmp_path), **away)) is not None


def test_without_the_library_a_certificate_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who configures a certificate wants manifests."""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    one = str(tmp_path / "one.pem")
    error = refusal(OURVIDZ_C2PA_CERTIFICATE=one, OURVIDZ_C2PA_KEY=one)
    assert error.message.startswith("OURVIDZ_C2PA_CERTIFICATE: ")
    assert "pip install 'ourvidz[c2pa]'" in error.message
