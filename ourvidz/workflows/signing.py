"""Signing what a job made, where a certificate is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ourvidz import log
from ourvidz.errors import InternalError
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.workflows.services import Signer

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class File:
    """A file as it will be stored. `signed` is None where nothing was to sign it."""

    data: bytes
    signed: bool | None = None


class Credentials:
    """Signs the files of one job, all of one source. What cannot be signed stays as it is: it is paid for.

    After a failure the job's other files are not tried, those aside that are being signed by then: an
    authority that does not answer takes half a minute for each of them, while the GPU waits.
    """

    def __init__(self, signer: Signer | None, source: DigitalSourceType, *, job_id: str) -> None:
        self.source = source
        self._signer = signer
        self._job_id = job_id
        self._broken = False

    def on(self, data: bytes, mime: str) -> File:
        """The file, signed if that can be done."""
        if self._signer is None:
            return File(data)
        if self._broken:
            return File(data, signed=False)
        try:
            return File(self._signer.sign(data, mime, self.source), signed=True)
        except InternalError as error:
            self._broken = True
            _log.error("signing_failed", job_id=self._job_id, mime=mime, reason=error.message)
            return File(data, signed=False)


def told(*files: File) -> dict[str, Any]:
    """What an asset's metadata says of its files' signatures; nothing where nothing was to sign them."""
    if any(file.signed is False for file in files):
        return {"c2pa": False, "c2pa_error": InternalError.code}
    return {"c2pa": True} if any(file.signed for file in files) else {}
