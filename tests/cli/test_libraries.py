"""Which libraries a GPU worker needs. `tests/packaging/test_control_host.py` runs without them."""

from __future__ import annotations

import pytest

from ourvidz.cli import libraries
from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings


def test_an_own_model_builder_needs_only_the_libraries_of_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that calls a remote model imports no torch; the files are made here all the same."""
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    own = load_settings(OURVIDZ_MODELS="ours.models:build", _env_file=None)
    assert libraries.missing_libraries(own) == libraries.MEDIA_LIBRARIES
    assert "torch" in libraries.missing_libraries(load_settings(_env_file=None))


def test_a_host_with_all_libraries_is_accepted_and_one_without_is_told_what_to_install() -> None:
    """The command is in the message, ready to be copied."""
    settings = load_settings(_env_file=None)
    libraries.require_libraries(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libraries, "find_spec", lambda name: None if name == "torch" else object())
        with pytest.raises(SettingsError, match=r"\(torch\): pip install 'ourvidz\[worker\]'"):
            libraries.require_libraries(settings)
