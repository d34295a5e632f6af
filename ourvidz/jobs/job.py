"""The canonical jobs: frozen, complete, and the same whatever dialect a caller wrote.

Field names are the contract's. Sizes are pixels, times seconds, strengths 0 to 1.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ourvidz.jobs.catalog import CATALOG, DEFAULT_BUCKET, JobType
from ourvidz.jobs.ranges import SEED

JOB_VERSION: Final = 1

ReferenceMode = Literal["none", "single", "start", "end", "both"]
ReferenceType = Literal["style", "composition", "character"]
ImageMode = Literal["text_to_image", "modify", "exact_copy"]


class BaseJob(BaseModel):
    """What every job has.

    `carried` comes back to the caller untouched, `flags` are echoed, `extras` are the fields nobody
    asked for: kept, never read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = JOB_VERSION
    id: str
    type: str
    user_id: str | None = None
    expected_time: float
    callback_url: str | None = None
    carried: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    extras: dict[str, Any] = {}

    @property
    def row(self) -> JobType:
        """The catalog row of its type."""
        return CATALOG[self.type]

    @property
    def queue(self) -> str:
        """The queue it waits in."""
        return self.row.queue

    def texts(self) -> tuple[str, ...]:
        """Every text a person wrote into this job."""
        return ()

    def callback_metadata(self) -> dict[str, Any]:
        """What the job itself contributes to the metadata of its callbacks, by field name."""
        return {
            **self.carried,
            "job_type": self.type,
            "content_type": self.row.content_type,
            "expected_time": self.expected_time,
            "unrestricted_mode": bool(self.flags.get("unrestricted_mode", False)),
            "nsfw_optimization": bool(self.flags.get("nsfw_optimization", False)),
            "system_prompt_used": "none",
            "wan_task": None,
            "frame_num": None,
            "reference_mode": "none",
            "i2i_mode": None,
            "exact_copy_mode": False,
        }

    def fingerprint(self) -> str:
        """Equal for two requests that ask for the same work, seeds and what is only carried through aside."""
        aside = {"carried", "flags", "extras", "seed", "seed_drawn"}
        asked = self.model_dump(mode="json", exclude=aside)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def repeats(self, fingerprint: str, callback_metadata: dict[str, Any]) -> bool:
        """Whether this job asks for the work of an earlier one with this fingerprint and callback metadata.

        A request without a seed matches any seed; a request with one matches only the same seed.
        """
        given = None if getattr(self, "seed_drawn", True) else getattr(self, "seed", None)
        return self.fingerprint() == fingerprint and given in (None, callback_metadata.get("seed"))


class JobLora(BaseModel):
    """A LoRA file by its name, and how much of it is added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weight: float


class ImageJob(BaseJob):
    """One SDXL job."""

    kind: Literal["image"] = "image"
    prompt: str
    negative_prompt: str | None = None
    steps: int
    guidance_scale: float
    num_images: Literal[1, 3, 6] = 1
    width: int
    height: int
    seed: int
    seed_drawn: bool = False
    reference: str | None = None
    reference_type: ReferenceType | None = None
    denoise_strength: float = 0.15
    exact_copy_mode: bool = False
    compel_enabled: bool = False
    compel_weights: str | None = None
    loras: tuple[JobLora, ...] = ()
    bucket: str = DEFAULT_BUCKET

    @property
    def seeds(self) -> list[int]:
        """One a picture: picture k has `seed` + k. After the last seed a caller may send comes 0, so that
        each can be asked for alone."""
        return [(self.seed + k) % (int(SEED.high) + 1) for k in range(self.num_images)]

    @property
    def mode(self) -> ImageMode:
        """What the pipeline is asked to do."""
        if self.reference is None:
            return "text_to_image"
        return "exact_copy" if self.exact_copy_mode and not self.prompt else "modify"

    @property
    def effective_steps(self) -> int:
        """How many denoising steps will run."""
        if self.mode == "modify":
            return max(1, int(self.steps * self.denoise_strength))
        if self.mode == "exact_copy" and self.denoise_strength == 0:
            return 0
        return self.steps

    def texts(self) -> tuple[str, ...]:
        return tuple(t for t in (self.prompt, self.negative_prompt, self.compel_weights) if t)

    def callback_metadata(self) -> dict[str, Any]:
        i2i = {"text_to_image": None, "modify": "modify", "exact_copy": "copy"}[self.mode]
        return super().callback_metadata() | {
            "seed": self.seed,
            "num_images": self.num_images,
            "frame_num": 1,
            "reference_mode": "none" if self.reference is None else "single",
            "i2i_mode": i2i,
            "exact_copy_mode": self.mode == "exact_copy",
            "compel_enabled": self.compel_enabled,
            "compel_weights": self.compel_weights,
            "original_prompt": self.prompt,
        }


class VideoJob(BaseJob):
    """One Wan job: a clip, or a picture when `frames` is 1."""

    kind: Literal["video"] = "video"
    prompt: str
    negative_prompt: str | None = None
    steps: int
    guidance_scale: float
    num_images: Literal[1] = 1
    width: int
    height: int
    frames: int
    fps: int = 16
    solver: Literal["unipc", "dpm++"] = "unipc"
    shift: float = 5.0
    seed: int
    seed_drawn: bool = False
    reference_mode: ReferenceMode = "none"
    single_reference: str | None = None
    start_reference: str | None = None
    end_reference: str | None = None
    reference_type: ReferenceType | None = None
    denoise_strength: float = 0.15
    enhance_prompt: bool = False
    system_prompt: str | None = None
    enhance_tokens: int = 512
    enhance_temperature: float = 0.7
    bucket: str = DEFAULT_BUCKET

    def texts(self) -> tuple[str, ...]:
        return tuple(t for t in (self.prompt, self.negative_prompt, self.system_prompt) if t)

    def callback_metadata(self) -> dict[str, Any]:
        prompted = "none" if not self.enhance_prompt else "custom" if self.system_prompt else "default"
        return super().callback_metadata() | {
            "seed": self.seed,
            "num_images": 1,
            "frame_num": self.frames,
            "wan_task": "t2v-1.3B",
            "reference_mode": self.reference_mode,
            "system_prompt_used": prompted,
            "compel_enabled": False,
            "compel_weights": None,
            "original_prompt": self.prompt,
        }


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatJob(BaseJob):
    """One text job."""

    kind: Literal["chat"] = "chat"
    messages: tuple[Message, ...]
    model: Literal["qwen_instruct", "qwen_base"] = "qwen_instruct"
    max_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int
    seed_drawn: bool = False
    sfw_mode: bool = False
    stream: bool = False

    @property
    def asked(self) -> str:
        """What the person said last."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def texts(self) -> tuple[str, ...]:
        return tuple(message.content for message in self.messages)

    def callback_metadata(self) -> dict[str, Any]:
        system = any(message.role == "system" for message in self.messages)
        return super().callback_metadata() | {
            "seed": self.seed,
            "num_images": 1,
            "system_prompt_used": "custom" if system else "none",
            "original_prompt": self.asked,
        }


class AdminJob(BaseJob):
    """One `admin_utilities` job."""

    kind: Literal["admin"] = "admin"
    operation: str = "status"


Job = ImageJob | VideoJob | ChatJob | AdminJob

_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


def load_job(document: str | bytes) -> Job:
    """Read a job back from the JSON that `dump_job` wrote."""
    return _ADAPTER.validate_json(document)


def dump_job(job: Job) -> str:
    """Write a job as JSON."""
    return job.model_dump_json()
