"""The jobs that payloads are parsed into: frozen and complete, with all defaults filled in.

Sizes are pixels, times seconds, strengths 0 to 1.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ourvidz.errors import NewerRelease
from ourvidz.jobs.catalog import CATALOG, DEFAULT_BUCKET, JobType
from ourvidz.jobs.ranges import SEED
from ourvidz.jobs.requests import dump_request, is_same_request
from ourvidz.jobs.versions import FIRST_VERSION, later_fields

JOB_VERSION: Final = 1
"""The newest version of a job document that this release reads; see `ourvidz.jobs.versions`."""

ReferenceMode = Literal["none", "single", "start", "end", "both"]
ReferenceType = Literal["style", "composition", "character"]
ImageMode = Literal["text_to_image", "modify", "exact_copy"]


class BaseJob(BaseModel):
    """The fields of every job.

    `type` is the name of a row of the catalog. `carried` are fields that callbacks return unchanged, `flags`
    are switches and labels that the result echoes, `extras` the fields of the payload that are not read.
    `defaulted` names the fields that the payload did not have; it is not stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = FIRST_VERSION
    """First, because scripts of the ledger read it from the beginning of a document."""
    id: str
    type: str
    user_id: str | None = None
    expected_time: float
    callback_url: str | None = None
    carried: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    defaulted: frozenset[str] = Field(default=frozenset(), exclude=True, repr=False)

    @property
    def row(self) -> JobType:
        """The catalog row of the job's type."""
        return CATALOG[self.type]

    @property
    def queue(self) -> str:
        """The name of the job's queue."""
        return self.row.queue

    def texts(self) -> tuple[str, ...]:
        """Every text of the job that a person wrote, for the safety gate."""
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

    @property
    def document_version(self) -> int:
        """The version of the stored document: the first one that has all fields that the job uses."""
        return max([FIRST_VERSION, *later_fields(self)[0].values()])

    def fingerprint(self) -> str:
        """A hash of the complete job with all defaults. It ignores the seed, which may be drawn, and fields
        that do not change the result.

        Records of the first release have only this one, and shims of it compare it, so it must not change.
        """
        document = self._comparable(exclude=later_fields(self)[1])
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def request(self) -> str:
        """What the caller sent, in the form that `is_repeat_of` compares: equal requests stay equal when a
        default changes."""
        document = self._comparable(exclude={"id", "version", "kind"})
        return dump_request(document, self.defaulted, self.effective_flags())

    def effective_flags(self) -> dict[str, bool]:
        """The flags that change what runs, by name. The others are only returned in callbacks."""
        return {}

    def is_repeat_of(
        self, fingerprint: str, callback_metadata: dict[str, Any], request: str | None = None
    ) -> bool:
        """Whether this job asks for the work of an earlier one: with this fingerprint, callback metadata and,
        unless a release before this form recorded it, request.

        A job without a seed matches any seed; one with a seed matches only the same seed.
        """
        seed = None if getattr(self, "seed_drawn", True) else getattr(self, "seed", None)
        if seed not in (None, callback_metadata.get("seed")):
            return False
        if request is not None:
            return is_same_request(request, self.request())
        return self.fingerprint() == fingerprint

    def _comparable(self, *, exclude: set[str]) -> dict[str, Any]:
        ignored = {"carried", "flags", "extras", "seed", "seed_drawn"}
        return self.model_dump(mode="json", exclude=ignored | exclude)


class JobLora(BaseModel):
    """A LoRA that a job uses, by its configured name, with its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weight: float


class ImageJob(BaseJob):
    """An SDXL job: 1, 3 or 6 images from a prompt, a reference, or both.

    `seed_drawn`: the payload had no seed. `reference` is a URL, a data URI or a storage path.
    """

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
        """The seed of each image: `seed` + k for image k. It wraps to 0 after the largest allowed seed, so
        that each image can be requested alone."""
        return [(self.seed + k) % (int(SEED.high) + 1) for k in range(self.num_images)]

    @property
    def mode(self) -> ImageMode:
        """`exact_copy` with a reference, the mode set and an empty prompt; `modify` with any other
        reference."""
        if self.reference is None:
            return "text_to_image"
        return "exact_copy" if self.exact_copy_mode and not self.prompt else "modify"

    @property
    def effective_steps(self) -> int:
        """The number of denoising steps that run: image-to-image skips the first ones."""
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
    """A Wan job: a clip, or an image if `frames` is 1.

    `frames` is the delivered number. `shift` is the solver's flow shift. Which references are set follows
    `reference_mode`. `enhance_tokens` and `enhance_temperature` are used if the prompt is enhanced.
    """

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

    def effective_flags(self) -> dict[str, bool]:
        """With `sfw_mode` the enhanced prompt is moderated."""
        return {"sfw_mode": bool(self.flags.get("sfw_mode"))} if self.enhance_prompt else {}

    def callback_metadata(self) -> dict[str, Any]:
        system_prompt = "none" if not self.enhance_prompt else "custom" if self.system_prompt else "default"
        return super().callback_metadata() | {
            "seed": self.seed,
            "num_images": 1,
            "frame_num": self.frames,
            "wan_task": "t2v-1.3B",
            "reference_mode": self.reference_mode,
            "system_prompt_used": system_prompt,
            "compel_enabled": False,
            "compel_weights": None,
            "original_prompt": self.prompt,
        }


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatJob(BaseJob):
    """A text job: a conversation and sampling parameters. `stop` are texts that end the answer and are not
    part of it."""

    kind: Literal["chat"] = "chat"
    messages: tuple[Message, ...]
    model: Literal["qwen_instruct", "qwen_base"] = "qwen_instruct"
    max_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int
    seed_drawn: bool = False
    sfw_mode: bool = False
    stream: bool = False

    @property
    def last_user_message(self) -> str:
        """The content of the last message of the user; empty if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def texts(self) -> tuple[str, ...]:
        return tuple(message.content for message in self.messages)

    def callback_metadata(self) -> dict[str, Any]:
        has_system_prompt = any(message.role == "system" for message in self.messages)
        return super().callback_metadata() | {
            "seed": self.seed,
            "num_images": 1,
            "system_prompt_used": "custom" if has_system_prompt else "none",
            "original_prompt": self.last_user_message,
        }


class AdminJob(BaseJob):
    """An `admin_utilities` job: one operation on the installation."""

    kind: Literal["admin"] = "admin"
    operation: str = "status"


Job = ImageJob | VideoJob | ChatJob | AdminJob

# Without a cache of values: prompts and ids do not come again, and it keeps 16,384 of them in every process.
_ADAPTER: TypeAdapter[Job] = TypeAdapter(
    Annotated[Job, Field(discriminator="kind")], config=ConfigDict(cache_strings="keys")
)


def load_job(document: str | bytes) -> Job:
    """Parse the JSON that `dump_job` wrote. Unknown fields are ignored. Raises `NewerRelease` for a document
    of a version that this release does not know."""
    try:
        job = _ADAPTER.validate_json(document, extra="ignore")
    except ValidationError:
        _refuse_newer(json.loads(document).get("version", FIRST_VERSION))
        raise
    _refuse_newer(job.version)
    return job


def dump_job(job: Job) -> str:
    """Serialise a job as JSON for the ledger, readable by every release that knows the fields it uses."""
    versioned = job.model_copy(update={"version": job.document_version})
    return versioned.model_dump_json(exclude=later_fields(job)[1])


def _refuse_newer(version: int) -> None:
    if version > JOB_VERSION:
        raise NewerRelease(
            f"a job document has version {version} and this release reads {JOB_VERSION}: upgrade it"
        )
