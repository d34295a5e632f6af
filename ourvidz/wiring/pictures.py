"""The classifier of pictures that the settings name."""

from __future__ import annotations

from importlib import import_module

from ourvidz.errors import SettingsError
from ourvidz.net.client import HttpClient
from ourvidz.safety.moderation import TIMEOUT_S, Moderation
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal
from ourvidz.workflows.pictures import Classify, EndpointClassifier, PictureGate

VARIABLE = "OURVIDZ_IMAGE_CLASSIFIER"


def picture_gate(settings: Settings) -> PictureGate | None:
    """Return the gate for the pictures of jobs; None where the settings name no classifier. Raises
    `SettingsError` if the classifier cannot be imported."""
    if settings.image_classifier is None:
        return None
    return PictureGate(_classifier(settings), fail_open=settings.image_classifier_fails == "open")


def _classifier(settings: Settings) -> Classify:
    name = settings.image_classifier or ""
    if "://" in name:
        client = HttpClient(timeout_s=TIMEOUT_S)
        return EndpointClassifier(Moderation(name, reveal(settings.image_classifier_key), client).flags)
    module, _, attribute = name.partition(":")
    try:
        classify: Classify = getattr(import_module(module), attribute)
    except Exception as error:
        raise SettingsError(f"{VARIABLE}: cannot load {name!r}: {error}", field=VARIABLE) from error
    if not callable(classify):
        raise SettingsError(f"{VARIABLE}: {name!r} cannot be called", field=VARIABLE)
    return classify
