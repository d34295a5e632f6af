"""Judges pictures with the operator's classifier: references before they are used, results before they are
stored, previews before they are sent."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ourvidz import log
from ourvidz.errors import PolicyViolation, WorkerUnavailable
from ourvidz.pipelines.base import OnPreview, PreviewRenderer, Snapshot

if TYPE_CHECKING:
    from PIL.Image import Image

Classify = Callable[["Image"], bool]
"""Returns whether a picture is refused. Anything else that it returns or raises is a failure."""
Kind = Literal["reference", "result", "preview"]

SENT_PX = 768
"""The longest edge of a picture that is sent to an endpoint: classifiers read small ones."""
FRAME_STRIDE = 4
"""Every such frame of a clip is judged, and the last one: the frames of one latent differ little."""
MAX_FAILURES = 3
"""How often a classifier may fail open for one job until its other pictures pass unasked."""
CATEGORY = "picture"
REFUSED = "This request cannot be processed."
UNDECIDED = "This request cannot be checked now."

_log = log.get(__name__)


@dataclass(frozen=True)
class PictureGate:
    """The classifier, and what happens when it fails: `fail_open` lets a picture pass that it could not
    judge. One picture is judged at a time."""

    classify: Classify
    fail_open: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(self, picture: Image, *, job_id: str, kind: Kind) -> bool:
        """Return whether a picture was judged. Raises `PolicyViolation` for one that is refused, and
        `WorkerUnavailable` for one that cannot be judged, unless `fail_open`."""
        try:
            with self._lock:
                verdict = self.classify(picture)
            if verdict not in (True, False):
                raise TypeError(f"the verdict is of type {type(verdict).__name__}")
        except Exception as error:
            _log.warning("image_classifier_failed", job_id=job_id, kind=kind, error=type(error).__name__)
            if self.fail_open:
                return False
            raise WorkerUnavailable(UNDECIDED) from error
        if verdict:
            _log.warning("policy_violation", job_id=job_id, category=CATEGORY, kind=kind)
            violation = PolicyViolation(REFUSED)
            violation.audit = {"category": CATEGORY}
            raise violation
        return True


class JobPictures:
    """The pictures of one job. Without a gate nothing is judged. Threads may share it."""

    def __init__(self, gate: PictureGate | None, job_id: str) -> None:
        self._gate = gate
        self._job_id = job_id
        self._unjudged = 0

    def check(self, kind: Kind, *pictures: Image) -> None:
        """Judge pictures. Raises what `PictureGate.check` raises. A classifier that failed open too often for
        this job is not asked again: each of its time-outs would delay the job."""
        if self._gate is None:
            return
        for picture in pictures:
            asked = self._unjudged < MAX_FAILURES
            if not (asked and self._gate.check(picture, job_id=self._job_id, kind=kind)):
                self._unjudged += 1

    def check_frames(self, frames: Sequence[Image]) -> None:
        """Judge the result of a job that makes a clip or one image, by some of its frames."""
        self.check("result", *frames[::FRAME_STRIDE])
        if (len(frames) - 1) % FRAME_STRIDE:
            self.check("result", frames[-1])

    def judging(self, on_preview: OnPreview) -> OnPreview:
        """`on_preview` with previews that are judged where they are rendered. A preview that is refused fails
        like one that cannot be rendered: the job has no more previews."""
        if self._gate is None:
            return on_preview

        def judged(snapshot: Snapshot) -> PreviewRenderer:
            render = snapshot()

            def render_judged() -> Image:
                picture = render()
                self.check("preview", picture)
                return picture

            return render_judged

        return lambda snapshot: on_preview(lambda: judged(snapshot))

    def metadata(self) -> dict[str, Any]:
        """`pictures_judged` of the job's metadata; nothing where no classifier is configured."""
        return {} if self._gate is None else {"pictures_judged": not self._unjudged}


class EndpointClassifier:
    """A classifier behind the OpenAI moderation API: a picture is sent as a data URI. `flags` sends the parts
    of one input and returns the verdict."""

    def __init__(self, flags: Callable[[list[dict[str, Any]]], bool]) -> None:
        self._flags = flags

    def __call__(self, picture: Image) -> bool:
        """Whether the endpoint flags the picture. Raises what `flags` raises if there is no verdict."""
        # Imported here: the parent of a worker imports this module and makes no media.
        from ourvidz.media.images import encode_png

        small = picture.copy()
        small.thumbnail((SENT_PX, SENT_PX))
        data = base64.b64encode(encode_png(small)).decode()
        return self._flags([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])
