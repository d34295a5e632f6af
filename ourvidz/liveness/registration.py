"""What a worker is registered as at the caller's backend: its URL, the function that is called, the document.

A worker serves no requests; its URL is that of the shim on its host. The functions call `{URL}/health`.
"""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from ourvidz import __version__, log
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG
from ourvidz.ledger.store import Ledger
from ourvidz.records.codec import dump_json
from ourvidz.records.registrations import Registration
from ourvidz.settings import Settings

FUNCTIONS = {"chat": "register-chat-worker"}
"""The function of the backend that registers a family."""
OTHER_FUNCTION = "update-worker-url"
USUAL_PORTS = {"chat": 7861}
"""The port at which callers in the field expect a family."""
OTHER_USUAL_PORT = 7860

_log = log.get(__name__)


def of_worker(settings: Settings, family: str, *, models: dict[str, Any]) -> Registration | None:
    """Return the registration of a family's worker on this host; None where workers are not registered, or
    nobody beyond this host could reach it. `models` are the descriptions of its models by name."""
    if not is_enabled(settings):
        return None
    url, detection = worker_url(settings, family)
    if url is None:
        return None
    capabilities = {
        "pure_inference": True,
        "hardcoded_prompts": False,
        "prompt_modification": False,
        "job_types": [name for name, row in CATALOG.items() if row.family == family],
        "models": sorted(models) or [family],
        "version": __version__,
    }
    document = {
        "worker_url": url,
        "auto_registered": True,
        "registration_method": f"{family}_worker_self_registration",
        "detection_method": detection,
        "worker_type": family,
        "capabilities": capabilities,
    }
    return Registration(
        worker_type=family,
        worker_url=url,
        callback_url=function_url(settings, FUNCTIONS.get(family, OTHER_FUNCTION)),
        document=dump_json(document),
    )


def update_registrations(ledger: Ledger) -> None:
    """Tell the caller's backend now what has changed. A keeper does so too, within seconds: an error is
    logged and not raised."""
    try:
        ledger.update_registrations()
    except WorkerUnavailable as error:
        _log.warning("registrations_not_updated", reason=error.message)


def as_detail(made: Registration | None) -> dict[str, Any] | None:
    """Return the registration as a detail of the heartbeat."""
    return None if made is None else asdict(made)


def is_enabled(settings: Settings) -> bool:
    """Whether this host's workers are registered."""
    if settings.registration == "auto":
        return settings.runpod_pod_id is not None and settings.supabase_url is not None
    return settings.registration == "on"


def function_urls(settings: Settings) -> frozenset[str]:
    """Return the URLs of the functions that register workers; none without a backend."""
    if settings.supabase_url is None:
        return frozenset()
    return frozenset(function_url(settings, name) for name in (*FUNCTIONS.values(), OTHER_FUNCTION))


def function_url(settings: Settings, name: str) -> str:
    """Return the URL of a function of the backend, which must be set."""
    assert settings.supabase_url is not None
    return f"{settings.supabase_url.rstrip('/')}/functions/v1/{name}"


def worker_url(settings: Settings, family: str) -> tuple[str | None, str]:
    """Return the URL of a family on this host, and the variable that it was derived from.

    `OURVIDZ_PUBLIC_URL` comes first, unless it is an address of this host alone, such as `ourvidz up` sets.
    Else it is the URL at which RunPod's proxy serves a port of the pod: the usual one of the family if the
    shim listens there, else its first one. None for a port that is not known before the shim starts.
    """
    if settings.public_url is not None and not _is_local(settings.public_url):
        return settings.public_url.rstrip("/"), "OURVIDZ_PUBLIC_URL"
    usual = USUAL_PORTS.get(family, OTHER_USUAL_PORT)
    port = usual if usual in settings.ports else settings.ports[0]
    pod = settings.runpod_pod_id
    return (f"https://{pod}-{port}.proxy.runpod.net" if pod and port else None), "RUNPOD_POD_ID"


def _is_local(url: str) -> bool:
    """Whether a URL names this host itself, in IPv4, IPv6 or by name."""
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
