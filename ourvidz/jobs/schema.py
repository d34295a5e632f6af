"""JSON schemas of the accepted payloads, for the OpenAPI document. Requests are validated by the parsers."""

from __future__ import annotations

from typing import Any

from ourvidz.jobs import ranges
from ourvidz.jobs.catalog import ALIASES, CATALOG, DEFAULT_BUCKET, WRITE_BUCKETS
from ourvidz.jobs.chats import MODELS, ROLES
from ourvidz.jobs.fields import IDENTIFIER
from ourvidz.jobs.generation import REFERENCE_TYPES
from ourvidz.jobs.ranges import Range
from ourvidz.jobs.videos import MODES, SOLVERS

Schema = dict[str, Any]


def submission_schema() -> Schema:
    """The schema of a job submission: every field that is read, with its rule."""
    return {
        "type": "object",
        "title": "Job submission",
        "description": "One job, in any of the accepted dialects. null, a missing field and an empty "
        "string mean the same; numbers may be sent as strings.",
        "additionalProperties": True,
        "required": ["id", "type"],
        "properties": {
            **_top_level_properties(),
            **_conversation_properties(),
            "config": _object("How to generate.", _config_properties()),
            "metadata": _object("References, and what comes back in the callback.", _metadata_properties()),
        },
    }


def conversation_schema() -> Schema:
    """The schema of a synchronous chat request: a conversation, or the older form with a prompt."""
    config = {
        "system_prompt": _text(ranges.CONVERSATION_CHARS, "Goes with `prompt`."),
        "job_type": {"type": ["string", "null"], "description": "A type of the catalog, or an alias."},
    }
    return {
        "type": "object",
        "title": "Conversation",
        "description": "Either `messages`, or `prompt` and perhaps a system prompt; the rest is optional.",
        "additionalProperties": True,
        "properties": {
            "prompt": _text(ranges.PROMPT_CHARS),
            **_conversation_properties(),
            "seed": _number(ranges.SEED),
            "content_tier": {"description": "Comes back in the answer."},
            "unrestricted_mode": {"description": "Comes back in the answer."},
            "callback_url": _text(ranges.URL_CHARS, "Must be on the allow-list. Without it none is called."),
            "config": _object("The older form.", config),
            "metadata": _object("Kept with the job.", {}),
        },
    }


def _top_level_properties() -> Schema:
    identifier = {"type": "string", "pattern": f"^{IDENTIFIER.pattern}$"}
    return {
        "id": identifier | {"description": "The caller's id; `job_id` is accepted too."},
        "type": {"type": "string", "enum": [*CATALOG, *ALIASES], "description": _types_description()},
        "prompt": _text(ranges.PROMPT_CHARS),
        "user_id": identifier | {"description": "Required for jobs that store assets."},
        "negative_prompt": _text(ranges.PROMPT_CHARS),
        "compel_enabled": _boolean(),
        "compel_weights": _text(ranges.PROMPT_CHARS, "A1111 syntax, such as (sharp focus:1.2)."),
        "bucket": _enum(WRITE_BUCKETS, default=DEFAULT_BUCKET),
        "callback_url": _text(ranges.URL_CHARS, "Must be on the allow-list."),
        **{
            name: {"description": "Comes back in the callback."}
            for name in ("video_id", "image_id", "character_id", "model_variant", "created_at")
        },
    }


def _conversation_properties() -> Schema:
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(ROLES)}, "content": {"type": "string"}},
    }
    return {
        "messages": {
            "type": ["array", "null"],
            "items": message,
            "minItems": 1,
            "maxItems": ranges.MAX_MESSAGES,
            "description": f"At most {ranges.CONVERSATION_CHARS:,} characters in all.",
        },
        "model": _enum(MODELS, default="qwen_instruct"),
        "max_tokens": _number(ranges.MAX_TOKENS),
        "temperature": _number(ranges.TEMPERATURE, default=0.7),
        "top_p": _number(ranges.TOP_P, default=0.9),
        "frequency_penalty": _number(ranges.PENALTY, default=0.0),
        "presence_penalty": _number(ranges.PENALTY, default=0.0),
        "stop": {
            "description": "Texts that end the answer.",
            "type": ["string", "array", "null"],
            "maxLength": ranges.STOP_CHARS,
            "items": {"type": "string", "minLength": 1, "maxLength": ranges.STOP_CHARS},
            "maxItems": ranges.MAX_STOPS,
        },
        "sfw_mode": _boolean(),
        "stream": _boolean(),
    }


def _config_properties() -> Schema:
    link = "An http(s) URL, a data:image/ URI, or a storage path under the job's user."
    return {
        "steps": _number(ranges.STEPS),
        "guidance_scale": _number(ranges.GUIDANCE),
        "num_images": {"enum": [*CATALOG["sdxl_image_fast"].num_images, None]},
        "width": _number(ranges.SDXL_SIDE_PX, description="A multiple of 16 for Wan."),
        "height": _number(ranges.SDXL_SIDE_PX, description="A multiple of 16 for Wan."),
        "resolution": _text(16, "1024x1024; for Wan it only names an aspect."),
        "size": _text(16, "480*832"),
        "seed": _number(ranges.SEED),
        "frames": _number(ranges.FRAMES),
        "fps": _number(ranges.FPS, default=16),
        "sample_solver": _enum(SOLVERS, default="unipc"),
        "sample_shift": _number(ranges.SHIFT, default=5.0),
        "image": _text(ranges.DATA_URI_CHARS, link),
        "first_frame": _text(ranges.DATA_URI_CHARS, link),
        "last_frame": _text(ranges.DATA_URI_CHARS, link),
        "reference_mode": _enum(MODES),
        "enhance_prompt": _boolean(),
        "system_prompt": _text(ranges.CONVERSATION_CHARS),
        "max_tokens": _number(ranges.MAX_TOKENS),
        "temperature": _number(ranges.TEMPERATURE, default=0.7),
        "loras": _loras_schema(),
        "expected_time": _number(ranges.EXPECTED_S, description="Seconds."),
    }


def _loras_schema() -> Schema:
    one = {"name": {"type": "string"}, "weight": _number(ranges.LORA_WEIGHT)}
    return {
        "description": "SDXL: LoRA files by the names that the operator allows; ignored where none are.",
        "type": ["array", "string", "null"],
        "items": {"type": ["string", "object"], "required": ["name"], "properties": one},
    }


def _metadata_properties() -> Schema:
    return {
        "reference_image_url": _text(ranges.DATA_URI_CHARS),
        "start_reference_url": _text(ranges.DATA_URI_CHARS),
        "end_reference_url": _text(ranges.DATA_URI_CHARS),
        "reference_type": _enum(REFERENCE_TYPES),
        "denoise_strength": _number(ranges.STRENGTH, default=0.15),
        "reference_strength": _number(ranges.STRENGTH, description="1 - denoise_strength."),
        "exact_copy_mode": _boolean(),
    }


def _types_description() -> str:
    aliases = ", ".join(f"{alias} for {name}" for alias, name in ALIASES.items())
    return f"`job_type` is accepted too. Aliases: {aliases}."


def _object(description: str, properties: Schema) -> Schema:
    """Schema of an object or null."""
    return {
        "type": ["object", "null"],
        "description": description,
        "additionalProperties": True,
        "properties": properties,
    }


def _number(within: Range, **keywords: Any) -> Schema:
    """Schema of a number in a range, a numeric string or null, with further JSON Schema keywords."""
    low = "exclusiveMinimum" if within.above else "minimum"
    schema: Schema = {"type": ["integer" if within.whole else "number", "string", "null"]}
    schema |= {low: within.low, "maximum": within.high}
    if within.multiple > 1:
        schema["multipleOf"] = within.multiple
    return schema | keywords


def _text(limit: int, description: str | None = None) -> Schema:
    """Schema of a string of at most `limit` characters, or null."""
    schema: Schema = {"type": ["string", "null"], "maxLength": limit}
    return schema if description is None else schema | {"description": description}


def _enum(values: tuple[str, ...], **keywords: Any) -> Schema:
    """Schema of one of these strings, an empty one or null, with further JSON Schema keywords."""
    return {"enum": [*values, "", None]} | keywords


def _boolean() -> Schema:
    """Schema of a boolean, the same as text, an empty text or null."""
    return {"enum": [True, False, "true", "false", "", None]}
