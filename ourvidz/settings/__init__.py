"""What an operator can set.

Owns: the environment, `.env`, defaults, what a wrong value says. One file a topic.
Speaks: one typed, frozen settings object. Nothing else reads the environment.
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
