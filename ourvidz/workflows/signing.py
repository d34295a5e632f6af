"""Signing of a job's files with C2PA manifests, where a certificate is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ourvidz import log
from ourvidz.errors import InternalError
from ourvidz.workflows.services import Signer

if TYPE_CHECKING:
    from ourvidz.media.provenance import DigitalSourceType

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class AssetFile:
    """A file as it will be stored. `signed` is None where no certificate is configured."""

    data: bytes
    signed: bool | None = None


class AssetSigner:
    """Signs the files of one job, all of one source type. A file that cannot be signed is stored unsigned.

    After a failure the job's other files are not tried, except those being signed by other threads: a time
    stamp authority that does not answer costs half a minute for each file, while the GPU waits.
    """

    def __init__(self, signer: Signer | None, source: DigitalSourceType, *, job_id: str) -> None:
        self.source = source
        self._signer = signer
        self._job_id = job_id
        self._failed = False

    def sign(self, data: bytes, mime: str) -> AssetFile:
        """Return the file with a manifest if it can be signed, else as it is."""
        if self._signer is None:
            return AssetFile(data)
        if self._failed:
            return AssetFile(data, signed=False)
        try:
            return AssetFile(self._signer.sign(data, mime, self.source), signed=True)
        except InternalError as error:
            self._failed = True
            _log.error("signing_failed", job_id=self._job_id, mime=mime, reason=error.message)
            return AssetFile(data, signed=False)


def source_type(has_reference: bool) -> DigitalSourceType:
    """Return the IPTC source type: made by a model alone, or composed with a reference."""
    return "compositeWithTrainedAlgorithmicMedia" if has_reference else "trainedAlgorithmicMedia"


def signature_metadata(*files: AssetFile) -> dict[str, Any]:
    """Return the asset metadata about the signatures of its files; empty where no certificate is
    configured."""
    if any(file.signed is False for file in files):
        return {"c2pa": False, "c2pa_error": InternalError.code}
    return {"c2pa": True} if any(file.signed for file in files) else {}
