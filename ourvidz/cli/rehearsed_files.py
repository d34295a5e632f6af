"""The files of a rehearsed job: read as a browser reads them, compared with what the job says of them."""

from __future__ import annotations

import io
import re
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from ourvidz.cli.shim import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Shim, ShimError
from ourvidz.jobs.catalog import JobType
from ourvidz.media.provenance import read_source_type
from ourvidz.net.urls import origin
from ourvidz.settings import settings

MAX_THUMBNAIL_PX = 256
_KEY_CODES = {401: "UNAUTHORIZED", 403: "FORBIDDEN"}
"""The error codes of a shim that wants a key, by HTTP status."""
_S3_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
URL_FIX = "let OURVIDZ_PUBLIC_URL, or the URL of the storage, be one that your users can reach"
KEY_FIX = "name the shim by this URL, with --url: the key is sent to no other host"


class StepFailed(Exception):
    """A step of the rehearsal failed: why, and what to change."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def check_files(shim: Shim, row: JobType, result: dict[str, Any]) -> str:
    """Check the one asset of a completed job; returns a summary. Raises `StepFailed`."""
    assets = result["assets"]
    if len(assets) != 1 or assets[0]["type"] != row.content_type:
        raise StepFailed(f"{len(assets)} assets instead of one of type {row.content_type}", "report this")
    (asset,) = assets
    if row.output == "text":
        if not str(asset["metadata"].get("text") or "").strip():
            raise StepFailed("its text is empty", "check the checkpoint of the chat worker")
        return "a text"
    if row.output == "json":
        return "a result"
    data, with_key = _read_back(shim, result["videoUrl" if row.output == "mp4" else "imageUrl"], asset["url"])
    thumbnail, _ = _read_back(shim, result["thumbnailUrl"], asset["thumbnail_url"])
    _check_asset(row, data, asset["metadata"])
    _check_thumbnail(thumbnail)
    how = "with the key of the shim" if with_key else "without a key"
    return f"file and thumbnail read {how}"


def _read_back(shim: Shim, url: str | None, key: str | None) -> tuple[bytes, bool]:
    """The bytes of a file at the URL of the result, which must be those that the shim serves; and whether the
    URL needs the key of the shim, as that of a directory does."""
    if not key:
        raise StepFailed("it has no file, or no thumbnail", "see the log of the worker")
    try:
        served = shim.fetch(f"/assets/{quote(key)}")
    except (ShimError, requests.RequestException) as error:
        reason = f"{key} cannot be read through the shim: {getattr(error, 'message', error)}"
        raise StepFailed(reason, "shim and workers must have the same storage: `ourvidz doctor`") from None
    if not url or "://" not in url:
        raise StepFailed("its files have no URL", "set OURVIDZ_PUBLIC_URL for shim and workers")
    shown = urlsplit(url)._replace(query="", fragment="").geturl()
    try:
        with requests.Session() as session:
            session.trust_env = False
            response = session.get(url, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    except requests.RequestException as error:
        raise StepFailed(f"{shown} cannot be read: {type(error).__name__}", URL_FIX) from None
    needs_key = _wants_key_of_shim(shim, url, response)
    if needs_key:
        try:
            data = shim.fetch(url)
        except ShimError as error:
            reason = f"{shown} cannot be read with the key of the shim: {error.message}"
            raise StepFailed(reason, URL_FIX) from None
    elif response.status_code == requests.codes.ok:
        data = response.content
    else:
        fix = KEY_FIX if _problem_code(response) in _KEY_CODES.values() else URL_FIX
        raise StepFailed(f"{shown} answers {_describe_refusal(response)}", fix)
    if data != served:
        raise StepFailed(f"{shown} has other bytes than the shim", URL_FIX)
    return served, needs_key


def _wants_key_of_shim(shim: Shim, url: str, response: requests.Response) -> bool:
    """Whether this is the answer of the shim itself to a request without a key.

    A storage and a proxy refuse with the same statuses what a browser can then not read. The key may be sent
    to the URL of the shim only, and to its public one.
    """
    own = {origin(shim.url), origin(settings().public_url or shim.url)} - {None}
    if not {origin(url), origin(response.url)} <= own:
        return False
    return _problem_code(response) == _KEY_CODES.get(response.status_code, "")


def _problem_code(response: requests.Response) -> str | None:
    """The error code of a problem document; None for any other answer."""
    if response.headers.get("Content-Type", "").partition(";")[0].strip() != "application/problem+json":
        return None
    return _json_member(response, "code")


def _describe_refusal(response: requests.Response) -> str:
    """The status of an error, with its code in the form of a shim, of S3 or of Supabase Storage."""
    match = _S3_CODE.search(response.content[:4096])
    code = match[1].decode() if match else _json_member(response, "code") or _json_member(response, "error")
    status = f"HTTP {response.status_code}"
    return f"{status} ({code[:64]})" if code else status


def _json_member(response: requests.Response, name: str) -> str | None:
    """A text in a JSON object; None if the body is none, or has no such text."""
    try:
        document = response.json()
    except ValueError:
        return None
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else None


def _check_asset(row: JobType, data: bytes, metadata: dict[str, Any]) -> None:
    """Raise `StepFailed` unless a file is what its metadata says, marked as generated."""
    expected = metadata.get("file_size_bytes")
    if expected is not None and expected != len(data):
        raise StepFailed(f"its file has {len(data)} bytes instead of {expected}", "check the storage")
    if row.output == "mp4":
        if data[4:8] != b"ftyp":
            raise StepFailed("its file is no MP4", "check the storage")
    else:
        size = _size_px(data)
        if size != (metadata.get("width"), metadata.get("height")):
            raise StepFailed(f"its picture has {size} pixels", "check the storage")
    if read_source_type(data) is None:
        raise StepFailed("its file is not marked as generated by a model", "report this")
    if metadata.get("c2pa") is False:
        reason = f"its file has no manifest: {metadata.get('c2pa_error')}"
        raise StepFailed(reason, "`ourvidz doctor` on the host of the worker tests the certificate")


def _check_thumbnail(data: bytes) -> None:
    if max(_size_px(data)) > MAX_THUMBNAIL_PX:
        raise StepFailed(f"its thumbnail has {_size_px(data)} pixels", "report this")


def _size_px(data: bytes) -> tuple[int, int]:
    """Width and height of an image. Raises `StepFailed` if it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.size
    except (OSError, SyntaxError):
        raise StepFailed("its file is damaged", "check the storage") from None
