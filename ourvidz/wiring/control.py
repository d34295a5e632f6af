"""The control plane of a process: ledger, storage, gate, references, callbacks, and the text side of prompts.

It imports no torch, so that every process can build it; the models are built in `wiring.models`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ourvidz import __version__
from ourvidz.callbacks.target import Target
from ourvidz.jobs.dialects import Defaults
from ourvidz.jobs.ranges import FRAMES
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.liveness.availability import WorkerAvailability
from ourvidz.liveness.capacity import Capacity
from ourvidz.pipelines.checkpoints import PACKAGED, sdxl_config_folder
from ourvidz.prompts.encoders import TextEncoders, read_encoders
from ourvidz.recovery.sweep import SweepOptions
from ourvidz.settings import Settings
from ourvidz.settings import settings as process_settings
from ourvidz.settings.kinds import reveal, reveal_all
from ourvidz.storage.store import Store
from ourvidz.wiring.storage import open_store

if TYPE_CHECKING:
    # Imported on first use: every process has a control plane, and none uses all of it.
    from ourvidz.auditing.writer import AuditWriter
    from ourvidz.callbacks.delivery import CallbackSender
    from ourvidz.callbacks.inbox import Inbox
    from ourvidz.following import Followers
    from ourvidz.keys.store import KeyStore
    from ourvidz.keys.tokens import Tokens
    from ourvidz.limits.local import LocalAllowances
    from ourvidz.media.credentials import Signer
    from ourvidz.references.resolve import ReferenceResolver
    from ourvidz.safety.gate import Gate
    from ourvidz.safety.moderation import Moderation
    from ourvidz.telemetry.jobs import EndedJobs
    from ourvidz.telemetry.reporter import MetricsReporter
    from ourvidz.workflows.pictures import PictureGate

SDXL_SIZE = (1024, 1024)
"""Default width and height of SDXL jobs (px)."""
WAN_SIZE = (480, 832)
TINY_SDXL_SIZE = (128, 128)
TINY_WAN_SIZE = (64, 64)


@dataclass(frozen=True)
class ControlPlane:
    """Everything that a process uses except models, built from its settings."""

    settings: Settings
    ledger: Ledger
    store: Store
    defaults: Defaults
    target: Target
    availability: WorkerAvailability
    capacity: Capacity

    def prepare(self, *parts: Literal["gate", "references"]) -> None:
        """Build these parts now: the first job does not wait for their imports."""
        for part in parts:
            getattr(self, part)

    @cached_property
    def callback_sender(self) -> CallbackSender:
        """The sender of callbacks; one per process, because it limits the deliveries per host."""
        from ourvidz.callbacks.delivery import CallbackSender

        return CallbackSender(self.ledger, self.target)

    @cached_property
    def inbox(self) -> Inbox | None:
        """What the local receiver of callbacks has stored; None where callbacks go elsewhere."""
        if not self.settings.embedded:
            return None
        from ourvidz.callbacks.inbox import FILE_NAME, Inbox

        return Inbox(self.settings.state_dir / FILE_NAME)

    @cached_property
    def audit(self) -> AuditWriter | None:
        """The audit log of this process; None where it is off. Raises `SettingsError` for a wrong key."""
        from ourvidz.wiring import auditing

        return auditing.audit_writer(self.settings, self.store)

    @cached_property
    def gate(self) -> Gate:
        """The safety gate with its lists of terms."""
        from ourvidz.safety.gate import Gate, load_terms

        return Gate(load_terms())

    @cached_property
    def followers(self) -> Followers:
        """The followers of job streams; one object per process, because they share connections."""
        from ourvidz.following import Followers

        return Followers(self.ledger)

    @cached_property
    def keys(self) -> KeyStore:
        """The keys that are stored in the ledger's server."""
        from ourvidz.keys.store import KeyStore

        return KeyStore(self.ledger.connection)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens of browsers."""
        from ourvidz.keys.tokens import Tokens

        return Tokens(self.ledger.connection)

    @cached_property
    def allowances(self) -> LocalAllowances:
        """The allowances of plain requests; one object per process, because it draws units in advance."""
        from ourvidz.limits.local import LocalAllowances

        return LocalAllowances(self.ledger)

    @cached_property
    def references(self) -> ReferenceResolver:
        """Resolves the references of jobs: from this storage, or from hosts that may be called."""
        from ourvidz.net.egress_policy import EgressPolicy
        from ourvidz.net.fetch import Fetcher
        from ourvidz.references.resolve import ReferenceLimits, ReferenceResolver

        settings = self.settings
        networks = [entry for entry in settings.fetch_allowed_hosts if "/" in entry]
        hosts = [entry for entry in settings.fetch_allowed_hosts if "/" not in entry]
        limits = ReferenceLimits(max_bytes=settings.reference_max_bytes, max_pixels=settings.reference_max_px)
        policy = EgressPolicy(hosts, networks)
        fetcher = Fetcher(policy, timeout_s=settings.fetch_timeout_s, max_bytes=limits.max_bytes)
        return ReferenceResolver(fetcher.get, self._read_stored, limits)

    def _read_stored(self, path: str, max_bytes: int) -> bytes:
        return self.store.get(path, length=max_bytes)

    @cached_property
    def signer(self) -> Signer | None:
        """Signs generated files; None without a certificate. Raises `SettingsError` when it cannot sign."""
        from ourvidz.wiring import signing

        return signing.signer(self.settings)

    @cached_property
    def moderation(self) -> Moderation | None:
        """The operator's moderation service; None where none is configured."""
        url = self.settings.moderation_url
        if url is None:
            return None
        from ourvidz.net.client import HttpClient
        from ourvidz.safety.moderation import TIMEOUT_S, Moderation

        return Moderation(url, reveal(self.settings.moderation_key), HttpClient(timeout_s=TIMEOUT_S))

    @cached_property
    def metrics_reporter(self) -> MetricsReporter | None:
        """Sends worker metrics and completion stats; None where no receiver is configured."""
        url = self.settings.metrics_url
        if url is None:
            return None
        from ourvidz.telemetry.reporter import MetricsReporter, post_to

        return MetricsReporter(post_to(url, reveal(self.settings.metrics_key)))

    @cached_property
    def ended_jobs(self) -> EndedJobs:
        """The jobs that this process ends, and their reports."""
        from ourvidz.telemetry.jobs import EndedJobs

        return EndedJobs(self.metrics_reporter)

    @cached_property
    def pictures(self) -> PictureGate | None:
        """The operator's classifier of pictures; None where none is configured. Raises `SettingsError` when
        it cannot be loaded."""
        from ourvidz.wiring import pictures

        return pictures.picture_gate(self.settings)

    @cached_property
    def sweep_options(self) -> SweepOptions:
        """The intervals and time limits of the sweep."""
        settings = self.settings
        return SweepOptions(
            interval_s=settings.sweep_s,
            lease_s=settings.lease_s,
            empty_s=settings.empty_queue_s,
            unclaimed_s=settings.unclaimed_s,
            retention_s=settings.retention_s,
            enhance_within_s=settings.enhance_within_s,
        )


def callback_hosts(settings: Settings) -> frozenset[str]:
    """Return the hosts that a payload may name in `callback_url`: the allow-list and the default receiver."""
    defaults = {urlsplit(url).netloc for url in (settings.default_callback_url, settings.supabase_url) if url}
    return frozenset(host.lower() for host in (*settings.callback_allow, *defaults))


def defaults(settings: Settings) -> Defaults:
    """Return what submission fills in: the native sizes of the tiny checkpoints or the production sizes, and
    the operator's own defaults."""
    production = settings.profile == "production"
    return Defaults(
        sdxl_size=SDXL_SIZE if settings.sdxl_model or production else TINY_SDXL_SIZE,
        wan_size=WAN_SIZE if settings.wan_model or production else TINY_WAN_SIZE,
        wan_frame_pixels=wan_frame_pixels(settings, tiny=not (settings.wan_model or production)),
        callback_hosts=callback_hosts(settings),
        negative_prompt=settings.negative_prompt,
        wan_negative_prompt=settings.wan_negative_prompt,
        loras=lora_weights(settings),
    )


def lora_weights(settings: Settings) -> dict[str, float]:
    """Return the default weight of each LoRA file that jobs may name."""
    entries = (entry.partition("=") for entry in settings.sdxl_job_loras)
    return {name: float(rest.partition("@")[2] or 1.0) for name, _, rest in entries}


def wan_frame_pixels(
    settings: Settings, size: tuple[int, int] = WAN_SIZE, *, tiny: bool = False
) -> int | None:
    """Return the most pixels that the frames of one clip may have together: the configured number, else the
    most frames of a job at `size`. None, no limit, for the tiny checkpoint: it scales requests down."""
    if tiny or settings.wan_max_frame_pixels is not None:
        return settings.wan_max_frame_pixels
    return int(FRAMES.high) * size[0] * size[1]


def target(settings: Settings) -> Target:
    """Return where callbacks go and how they are signed."""
    return Target(
        default_url=settings.default_callback_url,
        service_key=reveal(settings.supabase_service_key),
        callback_secrets=reveal_all(settings.callback_secrets),
        webhook_secrets=reveal_all(settings.webhook_secrets),
        assets_as=settings.callback_assets,
        timeout_s=settings.callback_timeout_s,
        window_s=settings.callback_window_s,
        allowed_hosts=callback_hosts(settings),
        registration_urls=registration.function_urls(settings),
        worker_version=__version__,
    )


def text_encoders(settings: Settings, *, packaged: Path = PACKAGED) -> TextEncoders | None:
    """Return the tokenizers and widths of the SDXL checkpoint's text encoders; None where this host has no
    checkpoint, or, as a control host, no library for tokenizers. Raises `ModelLoadError` naming a damaged
    file."""
    folder = text_encoder_folder(settings, packaged=packaged)
    return None if folder is None or find_spec("tokenizers") is None else read_encoders(folder)


def text_encoder_folder(settings: Settings, *, packaged: Path = PACKAGED) -> Path | None:
    """Return the folder of the tokenizers and configs that an SDXL worker with these settings would load.
    None where it does not exist: the shim may run on a host without models."""
    if settings.sdxl_model is None and settings.profile == "production":
        return None
    model = settings.sdxl_model or packaged / "tiny-sdxl"
    folder = sdxl_config_folder(model, settings.sdxl_config, packaged=packaged)
    return folder if model.exists() and folder.is_dir() else None


def open_ledger(settings: Settings, kind: type[Ledger] = Ledger) -> Ledger:
    """Return the ledger of these settings, as a `kind` of it."""
    return kind(
        settings.redis_url,
        prefix=settings.key_prefix,
        presence_s=settings.presence_s,
        retention_s=settings.retention_s,
        retry_window_s=settings.retry_window_s,
        replica_acks=settings.replica_acks,
    )


def build(settings: Settings, *, ledger: Ledger | None = None, store: Store | None = None) -> ControlPlane:
    """Return the control plane for these settings; `ledger` and `store` replace the configured ones."""
    if ledger is None:
        ledger = open_ledger(settings)
    return ControlPlane(
        settings=settings,
        ledger=ledger,
        store=store or open_store(settings),
        defaults=defaults(settings),
        target=target(settings),
        availability=WorkerAvailability(ledger, settings.worker_grace_s),
        capacity=Capacity(
            ledger,
            max_queued=settings.max_queued,
            folder=settings.state_dir if settings.embedded else None,
        ),
    )


_current: ControlPlane | None = None


def current() -> ControlPlane:
    """Return the control plane of this process, built from its settings on first use."""
    global _current
    if _current is None:
        _current = build(process_settings())
    return _current


@contextmanager
def using(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """Let `current()` return this control plane inside the context: for eager mode and tests."""
    global _current
    before, _current = _current, control_plane
    try:
        yield control_plane
    finally:
        _current = before
