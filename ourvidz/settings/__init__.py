"""Settings of the workers and the HTTP shim.

Owns: the environment, `.env`, defaults, validation errors. One module per topic.
Handles: one typed, frozen settings object. No other package reads the environment.
"""

from ourvidz.settings.read import (
    Settings,
    become_worker,
    environment,
    ignore_env_file,
    load_settings,
    secret_variables,
    set_environment,
    settings,
    share_processors,
    show_gpu,
)
from ourvidz.settings.sdxl import SDXLScheduler

__all__ = [
    "SDXLScheduler",
    "Settings",
    "become_worker",
    "environment",
    "ignore_env_file",
    "load_settings",
    "secret_variables",
    "set_environment",
    "settings",
    "share_processors",
    "show_gpu",
]
