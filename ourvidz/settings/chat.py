"""Settings of chat and prompt enhancement."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import LocalPath, Secret, Topic, WebURL, env

DEFAULT_ENHANCE_SYSTEM_PROMPT = (
    "You improve prompts for pictures and clips. Keep what they say and describe light, texture and motion."
)


class ChatSettings(Topic):
    """The language models, prompt enhancement and moderation."""

    qwen_model: LocalPath | None = env("OURVIDZ_QWEN_MODEL")
    qwen_together: Literal["auto", "always", "never"] = env("OURVIDZ_QWEN_TOGETHER", "auto")
    """Whether the base and the instruct model are loaded at the same time."""
    qwen_compile: bool = env("OURVIDZ_QWEN_COMPILE", False)
    """Compiles the feed-forward layers and norms of the local checkpoints when they are loaded."""
    qwen_instruct_url: WebURL | None = env("OURVIDZ_QWEN_INSTRUCT_URL")
    """URL of an OpenAI-compatible server that replaces the local checkpoint."""
    qwen_instruct_name: str | None = env("OURVIDZ_QWEN_INSTRUCT_NAME")
    """Model name on that server; default is the first one that it lists."""
    qwen_base_url: WebURL | None = env("OURVIDZ_QWEN_BASE_URL")
    qwen_base_name: str | None = env("OURVIDZ_QWEN_BASE_NAME")
    qwen_key: Secret | None = env("OURVIDZ_QWEN_KEY")
    """Bearer token for both servers."""
    chat_batch: int = env("OURVIDZ_CHAT_BATCH", 8, ge=1, le=256)
    """Maximum batch size of text generation."""
    enhance_within_s: float = env("OURVIDZ_ENHANCE_WITHIN_S", 60.0, gt=0)
    """Time in seconds after which a Wan job is generated without its enhanced prompt."""
    enhance_system_prompt: str = env("OURVIDZ_ENHANCE_SYSTEM_PROMPT", DEFAULT_ENHANCE_SYSTEM_PROMPT)
    """System prompt of enhancements whose job has none."""
    sync_deadline_s: float = env("OURVIDZ_SYNC_DEADLINE_S", 120.0, gt=0)
    """Deadline of a synchronous request in seconds, time in the queue included."""
    moderation_url: WebURL | None = env("OURVIDZ_MODERATION_URL")
    """OpenAI-compatible moderation endpoint that checks the prompts of jobs with `sfw_mode`."""
    moderation_key: Secret | None = env("OURVIDZ_MODERATION_KEY")
