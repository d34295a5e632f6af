"""Everything a process needs that is not a model: ledger, storage, gate, references, and where callbacks go.

No torch is reachable from here; the front door imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from ourvidz import __version__
from ourvidz.callbacks.delivery import CallbackSender, Target
from ourvidz.jobs.dialects import Defaults
from ourvidz.jobs.ranges import FRAMES
from ourvidz.ledger.store import Ledger
from ourvidz.ledger.sweep import SweepOptions
from ourvidz.liveness.availability import WorkerAvailability
from ourvidz.media.credentials import Signer
from ourvidz.net.client import HttpClient
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher
from ourvidz.references.resolve import Limits, References
from ourvidz.safety.gate import Gate, load_terms
from ourvidz.safety.moderation import TIMEOUT_S, Moderation
from ourvidz.settings import Settings
from ourvidz.settings import settings as process_settings
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.wiring import signing

SDXL_SIZE = (1024, 1024)
WAN_SIZE = (480, 832)
TINY_SDXL_SIZE = (128, 128)
TINY_WAN_SIZE = (64, 64)


@dataclass(frozen=True)
class Control:
    """The torch-free half of a process."""

    settings: Settings
    ledger: Ledger
    store: Store
    gate: Gate
    defaults: Defaults
    target: Target
    availability: WorkerAvailability

    @cached_property
    def courier(self) -> CallbackSender:
        """Delivers callbacks; one a process, because its lanes count what is under way."""
        return CallbackSender(self.ledger, self.target)

    @cached_property
    def references(self) -> References:
        """Reads what jobs refer to: out of this storage, or from hosts that may be called."""
        chosen = self.settings
        networks = [entry for entry in chosen.fetch_allowed_hosts if "/" in entry]
        hosts = [entry for entry in chosen.fetch_allowed_hosts if "/" not in entry]
        limits = Limits(max_bytes=chosen.reference_max_bytes, max_pixels=chosen.reference_max_px)
        fetcher = Fetcher(
            EgressPolicy(hosts, networks), timeout_s=chosen.fetch_timeout_s, max_bytes=limits.max_bytes
        )
        return References(fetcher.get, self.store.get, limits)

    @cached_property
    def signer(self) -> Signer | None:
        """Signs what is made here; None without a certificate. `SettingsError` when it cannot sign."""
        return signing.signer(self.settings)

    @cached_property
    def moderation(self) -> Moderation | None:
        """The operator's own judge of texts; None where none is configured."""
        url = self.settings.moderation_url
        if url is None:
            return None
        return Moderation(url, self.settings.moderation_key, HttpClient(timeout_s=TIMEOUT_S))

    @cached_property
    def sweep_options(self) -> SweepOptions:
        """The times that the sweep uses."""
        chosen = self.settings
        return SweepOptions(
            interval_s=chosen.sweep_s,
            lease_s=chosen.lease_s,
            empty_s=chosen.empty_queue_s,
            unclaimed_s=chosen.unclaimed_s,
            retention_s=chosen.retention_s,
            enhance_within_s=chosen.enhance_within_s,
        )


def callback_hosts(chosen: Settings) -> frozenset[str]:
    """The hosts a payload may name in `callback_url`: the allow-list and the default receiver's own."""
    own = {urlsplit(url).netloc for url in (chosen.default_callback_url, chosen.supabase_url) if url}
    return frozenset(host.lower() for host in (*chosen.callback_allow, *own))


def defaults(chosen: Settings) -> Defaults:
    """What the door fills in: the native size of the tiny checkpoints, or the production sizes."""
    production = chosen.profile == "production"
    return Defaults(
        sdxl_size=SDXL_SIZE if chosen.sdxl_model or production else TINY_SDXL_SIZE,
        wan_size=WAN_SIZE if chosen.wan_model or production else TINY_WAN_SIZE,
        wan_frame_pixels=wan_frame_pixels(chosen, tiny=not (chosen.wan_model or production)),
        callback_hosts=callback_hosts(chosen),
        negative_prompt=chosen.negative_prompt,
        loras=lora_weights(chosen),
    )


def lora_weights(chosen: Settings) -> dict[str, float]:
    """The LoRA names that jobs may use, each with its usual weight."""
    written = (entry.partition("=") for entry in chosen.sdxl_job_loras)
    return {name: float(rest.partition("@")[2] or 1.0) for name, _, rest in written}


def wan_frame_pixels(chosen: Settings, size: tuple[int, int] = WAN_SIZE, *, tiny: bool = False) -> int | None:
    """How many pixels the frames of a clip may have together: as it is set, else the most frames that anybody
    may ask for, at `size`. None, any number, for the tiny checkpoint: it scales what is asked for down."""
    if tiny or chosen.wan_max_frame_pixels is not None:
        return chosen.wan_max_frame_pixels
    return int(FRAMES.high) * size[0] * size[1]


def target(chosen: Settings) -> Target:
    """Where callbacks go and what signs them."""
    return Target(
        default_url=chosen.default_callback_url,
        service_key=chosen.supabase_service_key,
        callback_secrets=chosen.callback_secrets,
        webhook_secrets=chosen.webhook_secrets,
        assets_as=chosen.callback_assets,
        timeout_s=chosen.callback_timeout_s,
        window_s=chosen.callback_window_s,
        allowed_hosts=callback_hosts(chosen),
        worker_version=__version__,
    )


def build(settings: Settings, *, ledger: Ledger | None = None, store: Store | None = None) -> Control:
    """Return the control half for these settings; `ledger` and `store` replace the configured ones."""
    if ledger is None:
        ledger = Ledger(
            settings.redis_url,
            prefix=settings.key_prefix,
            presence_s=settings.presence_s,
            retention_s=settings.retention_s,
            retry_window_s=settings.retry_window_s,
        )
    return Control(
        settings=settings,
        ledger=ledger,
        store=store or LocalStore(settings.storage_dir, public_url=settings.public_url),
        gate=Gate(load_terms()),
        defaults=defaults(settings),
        target=target(settings),
        availability=WorkerAvailability(ledger, settings.worker_grace_s),
    )


_current: Control | None = None


def current() -> Control:
    """This process's control half, built from the settings on first use."""
    global _current
    if _current is None:
        _current = build(process_settings())
    return _current


@contextmanager
def using(control: Control) -> Iterator[Control]:
    """Let `current()` answer `control` for a while: eager mode and tests."""
    global _current
    before, _current = _current, control
    try:
        yield control
    finally:
        _current = before
