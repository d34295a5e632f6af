"""The models half of a worker's child, named as a string so that nothing else reaches torch."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ourvidz.errors import SettingsError
from ourvidz.settings import Settings
from ourvidz.workflows.services import Models

_loaded: dict[str, Models] = {}


def models(chosen: Settings, family: str) -> Models:
    """This process's pipelines of one family, built on first use."""
    if family not in _loaded:
        _loaded[family] = _build(chosen, family)
    return _loaded[family]


def loaded(family: str) -> Models | None:
    """The pipelines of a family if they have been built here."""
    return _loaded.get(family)


def forget() -> None:
    """Drop what was built: the next call builds again."""
    _loaded.clear()


def _build(chosen: Settings, family: str) -> Models:
    module, _, name = chosen.models.partition(":")
    try:
        builder = getattr(import_module(module), name)
    except (ImportError, AttributeError) as missing:
        raise SettingsError(f"OURVIDZ_MODELS: cannot load {chosen.models!r}: {missing}") from missing
    return cast(Models, builder(chosen, family))
