"""Which URLs callbacks may go to, and which secrets may be sent to each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ourvidz.callbacks.payload import AssetsAs
from ourvidz.callbacks.signing import webhook_signer
from ourvidz.errors import SettingsError
from ourvidz.net.urls import Origin, origin

NO_URL = "no callback URL is configured"
INVALID_URL = "the callback URL is not a plain http(s) URL"
NOT_ALLOWED = "the callback URL's host is not on the allow-list"
NO_FUNCTION = "the URL is not that of a function that registers workers"


@dataclass(frozen=True, slots=True)
class Target:
    """The delivery settings of an installation: the default receiver, allowed hosts, secrets and limits.

    A job may name a URL on the host of `default_url` or on one of `allowed_hosts` (`host` or `host:port`).
    The service key gives access to the caller's whole backend, so it is sent to `default_url` alone, and to
    `key_hosts` if an operator lists any. Signatures are sent to every receiver: they reveal nothing.
    `registration_urls` are the functions that register workers; they get the key too, from registrations.
    `timeout_s` bounds one delivery, `window_s` the time for which a terminal event is retried.

    Raises `SettingsError` for a malformed `default_url` or webhook secret.
    """

    default_url: str | None
    worker_version: str
    service_key: str | None = field(default=None, repr=False)
    callback_secrets: tuple[str, ...] = field(default=(), repr=False)
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    assets_as: AssetsAs = "objects"
    timeout_s: float = 10.0
    window_s: float = 26 * 3600.0
    allowed_hosts: Collection[str] = ()
    key_hosts: Collection[str] = ()
    registration_urls: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.default_url is not None and origin(self.default_url) is None:
            name = "OURVIDZ_CALLBACK_URL"
            raise SettingsError(f"{name}: must be an http(s) URL without a user name", field=name)
        for secret in self.webhook_secrets:
            webhook_signer(secret)

    def url(self, job_url: str | None) -> str | None:
        """The URL to post to for a job with this `callback_url`: its own, else the default."""
        return job_url or self.default_url

    def refusal(self, url: str | None, *, registration: bool = False) -> str | None:
        """Why a URL must not be called, or None. Checked at each delivery: the allow-list may have changed
        since the job was submitted. A `registration` may go to `registration_urls` only."""
        if registration:
            return None if url in self.registration_urls else NO_FUNCTION
        if url is None:
            return NO_URL
        destination = origin(url)
        if destination is None:
            return INVALID_URL
        if destination == self._default_origin or destination.is_among(self.allowed_hosts):
            return None
        return NOT_ALLOWED

    def service_key_for(self, url: str, *, registration: bool = False) -> str | None:
        """The service key if it may be sent to this URL, else None. Other paths of the default host do not
        get it: another function of the same backend may have another owner."""
        if registration and url in self.registration_urls:
            return self.service_key
        destination = origin(url)
        if destination is not None and (url == self.default_url or destination.is_among(self.key_hosts)):
            return self.service_key
        return None

    def limiter_key(self, url: str | None) -> str:
        """The name by which concurrent deliveries to a URL are limited; empty for an invalid URL.

        It is `host:port` for the default receiver and where the allow-list names the port, else the host: a
        caller must not get more threads by naming more ports.
        """
        destination = origin(url) if url else None
        if destination is None:
            return ""
        listed = destination.netloc in {entry.lower() for entry in self.allowed_hosts}
        return destination.netloc if listed or destination == self._default_origin else destination.host

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that callbacks may go to. An operator listed each of them, so they may be private."""
        origins = [self._default_origin, *(origin(url) for url in self.registration_urls)]
        return (*self.allowed_hosts, *{each.netloc for each in origins if each is not None})

    @property
    def _default_origin(self) -> Origin | None:
        return origin(self.default_url) if self.default_url else None
