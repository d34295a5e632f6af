"""Settings of the classifier that judges pictures."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from ourvidz.settings.kinds import Secret, Topic, env, with_scheme

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _classifier(value: str) -> str:
    """Return `value` unchanged: a URL, or `module:callable`."""
    if "://" in value:
        return with_scheme(value, "http", "https")
    if not _CALLABLE.fullmatch(value):
        raise ValueError("must be module:callable, or the URL of a moderation endpoint")
    return value


class PictureSettings(Topic):
    """The classifier of references and results."""

    image_classifier: Annotated[str, AfterValidator(_classifier)] | None = env("OURVIDZ_IMAGE_CLASSIFIER")
    """`module:callable`, or the URL of an endpoint with the OpenAI moderation API. None judges nothing."""
    image_classifier_key: Secret | None = env("OURVIDZ_IMAGE_CLASSIFIER_KEY")
    """Bearer token of the endpoint."""
    image_classifier_fails: Literal["closed", "open"] = env("OURVIDZ_IMAGE_CLASSIFIER_FAILS", "closed")
    """What happens to a picture that cannot be judged."""
