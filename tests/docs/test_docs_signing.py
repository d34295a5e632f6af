"""The certificate that the production page creates can sign."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.settings import load_settings
from ourvidz.wiring import signing


def test_the_certificate_of_the_page_signs(
    page: Callable[[str], Any], tmp_path: Path, make_chain: Any
) -> None:
    """The documented openssl commands create the certificate extensions that C2PA verifiers require."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    (commands,) = (
        block.text for block in page("docs/how-to/production.md").blocks("bash") if "openssl" in block.text
    )
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, check=True, capture_output=True
    )
    settings = load_settings(
        _env_file=None,
        OURVIDZ_C2PA_CERTIFICATE=tmp_path / "chain.pem",
        OURVIDZ_C2PA_KEY=tmp_path / "signer.key",
    )
    assert signing.signer(settings) is not None
