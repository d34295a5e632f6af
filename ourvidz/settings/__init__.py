"""Settings of the workers and the HTTP shim.

Owns: the environment, `.env`, defaults, validation errors. One module per topic.
Handles: one typed, frozen settings object. No other package reads the environment.
"""

from ourvidz.settings.read import (
    Settings,
    adopt,
    become_worker,
    environment,
    load_settings,
    settings,
    share_processors,
)
from ourvidz.settings.sdxl import SDXLScheduler

__all__ = [
    "SDXLScheduler",
    "Settings",
    "adopt",
    "become_worker",
    "environment",
    "load_settings",
    "settings",
    "share_processors",
]
