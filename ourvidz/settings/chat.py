"""Settings of chat and prompt enhancement."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import LocalPath, Topic, WebURL, env

ENHANCING = (
    "You improve prompts for pictures and clips. Keep what they say and describe light, texture and motion."
)


class ChatSettings(Topic):
    """The language model, and how it runs."""

    qwen_model: LocalPath | None = env("OURVIDZ_QWEN_MODEL")
    qwen_together: Literal["auto", "always", "never"] = env("OURVIDZ_QWEN_TOGETHER", "auto")
    """Whether both models may be loaded at once."""
    qwen_instruct_url: WebURL | None = env("OURVIDZ_QWEN_INSTRUCT_URL")
    """A server that speaks the OpenAI API, instead of a checkpoint here."""
    qwen_instruct_name: str | None = env("OURVIDZ_QWEN_INSTRUCT_NAME")
    """What the model is called there; default is the first that the server lists."""
    qwen_base_url: WebURL | None = env("OURVIDZ_QWEN_BASE_URL")
    qwen_base_name: str | None = env("OURVIDZ_QWEN_BASE_NAME")
    qwen_key: str | None = env("OURVIDZ_QWEN_KEY")
    """Sent as a bearer token to both."""
    chat_batch: int = env("OURVIDZ_CHAT_BATCH", 8, ge=1, le=256)
    """How many texts are decoded together at most."""
    enhance_within_s: float = env("OURVIDZ_ENHANCE_WITHIN_S", 60.0, gt=0)
    """So long after it was published a Wan job waits for its enhanced prompt."""
    enhance_system_prompt: str = env("OURVIDZ_ENHANCE_SYSTEM_PROMPT", ENHANCING)
    """Stands above the prompt of a Wan job that brings no system prompt of its own."""
    sync_deadline_s: float = env("OURVIDZ_SYNC_DEADLINE_S", 120.0, gt=0)
    """How long a synchronous request waits for its text, queue included."""
    moderation_url: WebURL | None = env("OURVIDZ_MODERATION_URL")
    """An OpenAI-compatible moderation endpoint, asked about jobs with `sfw_mode`."""
    moderation_key: str | None = env("OURVIDZ_MODERATION_KEY")
