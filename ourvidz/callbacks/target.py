"""Whom callbacks go to, and which secrets may go with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ourvidz.callbacks.payload import AssetsAs
from ourvidz.callbacks.signing import webhook
from ourvidz.errors import SettingsError
from ourvidz.net.urls import Origin, origin

NO_URL = "no callback URL is configured"
NOT_PLAIN = "the callback URL is not a plain http(s) URL"
NOT_ALLOWED = "the callback URL's host is not on the allow-list"


@dataclass(frozen=True, slots=True)
class Target:
    """Where callbacks go and what signs them.

    `allowed_hosts` (`host` or `host:port`) may be named by a job besides the default URL's own host.
    The service key opens the caller's whole backend: it goes to the default URL alone, and to
    `key_hosts` if an operator names any. Signatures go to everyone: they give nothing away.
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

    def __post_init__(self) -> None:
        if self.default_url is not None and origin(self.default_url) is None:
            name = "OURVIDZ_CALLBACK_URL"
            raise SettingsError(f"{name}: must be an http(s) URL without a user name", field=name)
        for secret in self.webhook_secrets:
            webhook(secret)

    def url(self, named: str | None) -> str | None:
        """Where to post for a job that named this URL, or none."""
        return named or self.default_url

    def refusal(self, url: str | None) -> str | None:
        """Why a URL is not called, or None. Asked at each delivery: the allow-list may have changed since
        the job was taken."""
        if url is None:
            return NO_URL
        where = origin(url)
        if where is None:
            return NOT_PLAIN
        if where == self._default_origin or where.is_among(self.allowed_hosts):
            return None
        return NOT_ALLOWED

    def service_key_for(self, url: str) -> str | None:
        """The service key, if this URL may see it: another path of the same backend may do other things."""
        where = origin(url)
        if where is not None and (url == self.default_url or where.is_among(self.key_hosts)):
            return self.service_key
        return None

    def lane(self, url: str | None) -> str:
        """The name under which deliveries to this URL are counted."""
        where = origin(url) if url else None
        return where.netloc if where else ""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that callbacks may go to. An operator has named each of them, so they may be private."""
        own = self._default_origin
        return (*self.allowed_hosts, own.netloc) if own else tuple(self.allowed_hosts)

    @property
    def _default_origin(self) -> Origin | None:
        return origin(self.default_url) if self.default_url else None
