"""The checks of `ourvidz doctor` for services: storage, signing, and the endpoints it calls.

Also `Check`, the result type of every check.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from ourvidz.errors import OurvidzError, SettingsError
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.settings import Settings

NETWORK_TIMEOUT_S = 5
"""How long a server may take to answer."""
_STORAGE_FIXES = {
    "local": "set OURVIDZ_STORAGE_DIR to a directory that can be written",
    "s3": "correct the OURVIDZ_S3_… variables; `ourvidz storage init` creates a missing bucket",
    "supabase": "correct SUPABASE_URL, SUPABASE_SERVICE_KEY; `ourvidz storage init` creates a missing bucket",
}
"""What to change, by back end."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `fix` says what to change after a failure or a warning, else it is
    empty."""

    name: str
    status: Literal["ok", "warning", "failed", "skipped"]
    reason: str
    fix: str = ""


def ok(name: str, reason: str) -> Check:
    """A check that passed."""
    return Check(name, "ok", reason)


def failed(name: str, reason: str, fix: str) -> Check:
    """A check that failed, with its fix."""
    return Check(name, "failed", reason, fix)


def warning(name: str, reason: str, fix: str) -> Check:
    """A check that found something to correct with which the installation works."""
    return Check(name, "warning", reason, fix)


def skipped(name: str, reason: str) -> Check:
    """A check that does not apply to this installation."""
    return Check(name, "skipped", reason)


def check_python() -> Check:
    """Report the version and path of the interpreter. A version that is too old fails earlier, on import."""
    version = ".".join(map(str, sys.version_info[:3]))
    return ok("python", f"{version} at {sys.executable}")


def check_storage(settings: Settings) -> Check:
    """Write, read and delete a test file in the storage."""
    from ourvidz.wiring.storage import open_store

    try:
        store = open_store(settings)
        store.check_access()
        store.check()
    except OurvidzError as error:
        return failed("storage", error.message, _STORAGE_FIXES[settings.storage])
    return ok("storage", store.location)


def check_signing(settings: Settings) -> Check:
    """Sign a small test image with the C2PA certificate."""
    if settings.c2pa_certificate is None:
        return skipped("signing", "OURVIDZ_C2PA_CERTIFICATE is not set: assets carry XMP, and no manifest")
    from ourvidz.wiring import signing

    try:
        signing.signer(settings)
    except SettingsError as error:
        return failed("signing", error.message, "correct it, or leave the OURVIDZ_C2PA_… variables out")
    stamp_url = settings.c2pa_timestamp_url
    timestamps = f"timestamps from {stamp_url}" if stamp_url else "no timestamps"
    return ok("signing", f"{settings.c2pa_certificate}, {settings.c2pa_algorithm}, {timestamps}")


def check_keys(settings: Settings) -> Check:
    """Parse the API keys of the shim. No result has a key."""
    from ourvidz.web.auth import load_keyring, require_safe_binding

    try:
        keyring = load_keyring(settings)
    except SettingsError as error:
        return failed("keys", error.message, "correct it: the shim does not start with it")
    if keyring.empty:
        try:
            require_safe_binding(settings)
        except SettingsError as error:
            # A host of workers needs none.
            return skipped("keys", f"a shim does not start with these settings: {error.message}")
        return skipped("keys", "there is no key: the shim serves this machine only")
    if keyring.secret_for("jobs") is None and settings.require_keys:
        return ok("keys", "those of `ourvidz keys` are required")
    return ok("keys", "none can be guessed")


def check_moderation(settings: Settings) -> Check:
    """Check that the moderation endpoint responds."""
    if settings.moderation_url is None:
        return skipped("moderation", "OURVIDZ_MODERATION_URL is not set: the safety gate alone judges texts")
    fix = "correct OURVIDZ_MODERATION_URL, or leave it out: jobs with sfw_mode fail"
    return _check_endpoint("moderation", settings.moderation_url, fix)


def check_image_classifier(settings: Settings) -> Check:
    """Load the classifier of pictures and let it judge a grey one; an endpoint must respond."""
    name = settings.image_classifier
    if name is None:
        return skipped(
            "pictures", "OURVIDZ_IMAGE_CLASSIFIER is not set: references and results are not judged"
        )
    fix = "correct OURVIDZ_IMAGE_CLASSIFIER, or leave it out: "
    fails = settings.image_classifier_fails
    fix += "jobs with pictures fail" if fails == "closed" else "pictures pass unjudged"
    if "://" in name:
        return _check_endpoint("pictures", name, fix)
    from PIL import Image

    from ourvidz.wiring.pictures import picture_gate

    try:
        gate = picture_gate(settings)
        assert gate is not None
        verdict = gate.classify(Image.new("RGB", (64, 64), "grey"))
    except SettingsError as error:
        return failed("pictures", error.message, fix)
    except Exception as error:  # noqa: BLE001  the classifier is the operator's
        return failed("pictures", f"{name} raises {type(error).__name__} for a grey picture", fix)
    if verdict not in (True, False):
        return failed("pictures", f"{name} returns no verdict for a grey picture", fix)
    return ok("pictures", f"{name}, fails {fails}")


def check_callbacks(settings: Settings) -> Check:
    """Check that the default callback receiver responds; skipped without one."""
    if settings.default_callback_url is None:
        return skipped("callbacks", "they go to the inbox of `ourvidz up`")
    fix = "correct SUPABASE_URL or OURVIDZ_CALLBACK_URL"
    return _check_endpoint("callbacks", settings.default_callback_url, fix)


def _check_endpoint(name: str, url: str, fix: str) -> Check:
    """Send OPTIONS. Any status passes: a POST would deliver a real callback or text. The client is the one
    that will send those, with the same rules for proxies, passwords and certificates."""
    response = HttpClient(timeout_s=NETWORK_TIMEOUT_S).options(url, headers={})
    if isinstance(response, RequestFailure):
        return failed(name, f"{url}: {response.reason}", fix)
    return ok(name, f"{url} answers ({response.status})")
