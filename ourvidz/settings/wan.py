"""Wan."""

from __future__ import annotations

from ourvidz.settings.kinds import LocalPath, Topic, env


class WanSettings(Topic):
    """The checkpoint, and how it runs."""

    wan_model: LocalPath | None = env("OURVIDZ_WAN_MODEL")
