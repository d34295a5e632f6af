"""Chat and enhancement."""

from __future__ import annotations

from ourvidz.settings.kinds import LocalPath, Topic, env


class ChatSettings(Topic):
    """The language model, and how it runs."""

    qwen_model: LocalPath | None = env("OURVIDZ_QWEN_MODEL")
