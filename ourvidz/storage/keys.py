"""Storage keys. They are fixed by job and index; an attempt has a folder of its own until it is committed."""

from __future__ import annotations

from ourvidz.errors import InvalidParameters
from ourvidz.file_names import MAX_KEY_CHARS, OWN_NAME, READABLE_CHARS, is_own_key, is_readable_key


def asset_folder(bucket: str, user_id: str, job_id: str) -> str:
    """The folder of a job's files, such as `workspace-temp/USER/JOB`."""
    return f"{bucket}/{user_id}/{job_id}"


def asset_key(bucket: str, user_id: str, job_id: str, index: int, extension: str) -> str:
    """The key of asset `index` of a job, such as `workspace-temp/USER/JOB/0.png`."""
    return f"{asset_folder(bucket, user_id, job_id)}/{index}.{extension}"


def thumbnail_key(bucket: str, user_id: str, job_id: str, index: int) -> str:
    """The key of the thumbnail of asset `index`."""
    return asset_key(bucket, user_id, job_id, index, "thumb.webp")


def attempts_folder(folder: str) -> str:
    """The folder in a job's folder that holds the files of attempts that are not committed. No caller's id
    begins with a dot."""
    return f"{folder}/.attempts"


def attempt_folder(folder: str, fence: int, token: str) -> str:
    """The folder of one attempt's files: fences order the attempts of a job, the token names one alone."""
    return f"{attempts_folder(folder)}/{fence}.{token}"


def fence_of(name: str) -> int:
    """The fence in the name of an attempt's folder. Raises `ValueError` for any other name."""
    return int(name.partition(".")[0])


CHECKPOINTS = "checkpoints/jobs"
"""The folder of the checkpoints of all jobs. No job can name its bucket, neither for files nor for
references, and no route serves it."""


UPLOADS = "checkpoints/uploads"
"""The folder of the markers of uploaded references, in the same bucket: with a folder for each time at which
references expire."""


def checkpoints_folder(job_id: str) -> str:
    """The folder of a job's checkpoints, with one folder for each attempt."""
    return f"{CHECKPOINTS}/{job_id}"


def checkpoint_key(job_id: str, attempt: str) -> str:
    """The key of the newest checkpoint of an attempt; `attempt` is its fence and token, `7.TOKEN`."""
    return f"{checkpoints_folder(job_id)}/{attempt}/denoising.safetensors"


def is_segment(name: str) -> bool:
    """Whether this name can be a segment of a key. Other programs store files under other names."""
    return OWN_NAME.fullmatch(name) is not None


def split_key(key: str) -> list[str]:
    """The segments of a key, the bucket first. Raises `InvalidParameters(field="key")` if it is malformed."""
    if not is_own_key(key):
        raise _malformed(key, "A-Z a-z 0-9 . _ : -")
    return key.split("/")


def split_readable_key(key: str) -> list[str]:
    """The segments of a key of a file that is only read, which a user may have named. Raises
    `InvalidParameters(field="key")` if it is malformed."""
    if not is_readable_key(key):
        raise _malformed(key, READABLE_CHARS)
    return key.split("/")


def _malformed(key: str, allowed: str) -> InvalidParameters:
    rule = f"{{bucket}}/{{path}} of {allowed}, at most {MAX_KEY_CHARS} characters"
    return InvalidParameters("This is not a storage key.", field="key", rule=rule, value=key)
