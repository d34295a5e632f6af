"""The models of this process, built by a builder that the settings name: no other module reaches torch.

Models are cached per family and per value of the settings that shape them, so that jobs of one process that
run under different settings, as in tests, each get their own models.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

from ourvidz.errors import SettingsError
from ourvidz.settings import Settings
from ourvidz.startup import collector_paused
from ourvidz.workflows.services import DeviceShare, Models, UnsharedDevice

CACHE_SIZE = 6
"""How many sets of models are kept; the least recently used one is dropped. A worker has one."""
PREFIXES = {"sdxl": ("sdxl_", "ip_adapter"), "wan": ("wan_",), "chat": ("qwen_",)}
"""The settings that shape the models of a family, by the beginning of their names."""
SHARED = ("profile", "models", "previews", "embedding_cache_mib", "emulated_gpu")
"""The settings that shape the models of every family."""

WORKFLOWS = {
    "sdxl": ("ourvidz.workflows.image",),
    "wan": ("ourvidz.workflows.video",),
    "chat": ("ourvidz.workflows.chat", "ourvidz.workflows.enhancement"),
}
"""The modules of the workflows of each family: they import the libraries that make its media."""

_Key = tuple[str, tuple[Any, ...]]
_cache: OrderedDict[_Key, Models] = OrderedDict()


def preload(settings: Settings, family: str) -> None:
    """Import all that a worker's child runs. A builder that cannot be imported is left to `models`; its
    module's function `preload(family)`, if it has one, imports what it needs later."""
    with collector_paused():
        preload_workflows(family)
        with suppress(ImportError):
            builder = import_module(settings.models.partition(":")[0])
            getattr(builder, "preload", _preload_nothing)(family)


def preload_workflows(family: str) -> None:
    """Import the workflows of a family, without reading the settings."""
    for module in WORKFLOWS.get(family, ()):
        import_module(module)


def _preload_nothing(_: str) -> None:
    """Builders need not have a function `preload`."""


def models(settings: Settings, family: str) -> Models:
    """Return the models of a family under these settings, built on first use and not loaded yet.

    Raises `SettingsError` when `OURVIDZ_MODELS` names no builder, and what the builder raises.
    """
    key = cache_key(settings, family)
    if key not in _cache:
        _cache[key] = _build(settings, family)
        if len(_cache) > CACHE_SIZE:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def device_share(models: Models) -> DeviceShare:
    """Return the device that these models share with other workers; builders need not provide one."""
    share: DeviceShare | None = getattr(models, "device_share", None)
    return UnsharedDevice() if share is None else share


def loaded(settings: Settings, family: str) -> Models | None:
    """Return the models of a family if they have been built under these settings."""
    return _cache.get(cache_key(settings, family))


def cache_key(settings: Settings, family: str) -> _Key:
    """Return the family and the values of the settings that shape its models."""
    prefixes = PREFIXES.get(family, ())
    names = [name for name in type(settings).model_fields if name in SHARED or name.startswith(prefixes)]
    values = [getattr(settings, name) for name in names]
    if family == "wan" and settings.wan_cache is not None:
        # The folder of the calibrations; without a cache nothing is written there.
        values.append(settings.state_dir)
    return family, tuple(values)


def _build(settings: Settings, family: str) -> Models:
    """Call the builder that `OURVIDZ_MODELS` names. Raises `SettingsError` if it cannot be imported."""
    module, _, name = settings.models.partition(":")
    preload(settings, family)
    try:
        builder = getattr(import_module(module), name)
    except (ImportError, AttributeError) as missing:
        raise SettingsError(f"OURVIDZ_MODELS: cannot load {settings.models!r}: {missing}") from missing
    return cast(Models, builder(settings, family))
