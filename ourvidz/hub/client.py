"""Reads repositories of a hub through `huggingface_hub`: what a revision contains, and the bytes of files.

Files are streamed here and not by the library's own download, which begins a file again after its process
ended: a checkpoint has files of ten gigabytes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from ourvidz import __version__
from ourvidz.errors import HubError
from ourvidz.hub.catalog import Part
from ourvidz.hub.selection import HubFile
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal

# Otherwise the library asks the public hub which programs use it, also where the settings name another hub.
constants.HF_HUB_DISABLE_TELEMETRY = True

ANSWER_TIMEOUT_S = 20.0
TRIES = 6
"""How often in a row a request may fail, or bring no bytes, until it is given up."""
LONGEST_WAIT_S = 120.0
"""Longest pause that the hub may ask for (`Retry-After`)."""
BLOCK_BYTES = 1 << 20
_UNEXPECTED = (ValueError, KeyError, TypeError, AttributeError)
"""What the library raises for a document that it does not expect."""
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_RETRIED = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        *(HTTPStatus(code) for code in range(500, 505)),
    }
)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit of a repository, and the licence that its card names."""

    commit: str
    files: tuple[HubFile, ...]
    licence: str | None


class Interrupted(Exception):
    """A request that may succeed when it is repeated. `pause_s` is the pause that the hub asked for."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause_s = pause_s


class Retries:
    """Counts failures in a row and waits between them: 1, 2, 4, 8, 16 s, or as long as the hub asked."""

    def __init__(self, wait: Callable[[float], None], tries: int = TRIES) -> None:
        self._wait = wait
        self._tries = tries
        self._failures = 0

    def progressed(self) -> None:
        """Bytes have arrived: the count begins again."""
        self._failures = 0

    def failed(self, error: Interrupted, hub: str) -> None:
        """Wait before the next try. Raises `HubError` after the last one, or for too long a pause."""
        self._failures += 1
        pause_s = error.pause_s if error.pause_s is not None else 2.0 ** (self._failures - 1)
        if self._failures >= self._tries or pause_s > LONGEST_WAIT_S:
            later = f"; it asks for a pause of {pause_s:.0f} s" if error.pause_s is not None else ""
            raise HubError(f"{hub}: {error.reason}{later}: try again later, what has arrived is kept")
        self._wait(pause_s)


class Hub:
    """One hub. `wait` replaces `time.sleep` between tries; `timeout_s` is how long it may take to answer, or
    to send the next bytes."""

    def __init__(
        self,
        settings: Settings,
        *,
        wait: Callable[[float], None] = time.sleep,
        tries: int = TRIES,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._endpoint = (settings.hf_endpoint or constants.ENDPOINT).rstrip("/")
        # False: a token that a login left on this machine is not sent, least of all to another hub.
        self._token: str | bool = reveal(settings.hf_token) or False
        self._wait = wait
        self._tries = tries
        self._timeout_s = timeout_s

    def retries(self) -> Retries:
        """A new count of tries."""
        return Retries(self._wait, self._tries)

    def listing(self, part: Part, revision: str) -> Listing:
        """The files of a revision. Raises `HubError`."""
        api = HfApi(endpoint=self._endpoint, token=self._token, library_name="ourvidz")
        retries = self.retries()
        while True:
            try:
                with self._errors(part):
                    info = api.model_info(
                        part.repository, revision=revision, files_metadata=True, timeout=self._timeout_s
                    )
                    listing = _listing(info)
                if _DIGEST.fullmatch(revision) and listing.commit != revision:
                    raise HubError(
                        f"{self._endpoint} answers with commit {listing.commit[:12]} of {part.repository}"
                        f" where {revision[:12]} was asked for: do not use this hub"
                    )
                return listing
            except Interrupted as interrupted:
                retries.failed(interrupted, self._endpoint)

    @contextmanager
    def open(
        self, part: Part, file: HubFile, commit: str, *, start: int
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield the position of the first byte (`start`, or 0 if the hub sends the whole file) and an
        iterator of the bytes. Raises `Interrupted` if the connection fails, `HubError` for a refusal.

        The request goes to the hub each time, whose redirect is signed for a limited time. The token does
        not follow a redirect to another host.
        """
        url = hf_hub_url(part.repository, file.name, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(token=self._token, library_name="ourvidz", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout = httpx2.Timeout(self._timeout_s)
        with (
            self._errors(part),
            get_session().stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=True
            ) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise Interrupted("it refuses to continue a file")
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            yield (start if resumed else 0), response.iter_raw(BLOCK_BYTES)

    @contextmanager
    def _errors(self, part: Part) -> Iterator[None]:
        """Convert the library's errors: to `Interrupted` what may pass, to `HubError` all others."""
        hub, repository = self._endpoint, part.repository
        try:
            yield
        except OfflineModeIsEnabled:
            raise HubError("HF_HUB_OFFLINE is set, so nothing can be pulled: unset it") from None
        except GatedRepoError:
            raise HubError(
                f"{repository} is gated: accept its terms at {hub}/{repository}, and set HF_TOKEN to a token"
                " of that account"
            ) from None
        except RevisionNotFoundError:
            raise HubError(f"{repository} has no revision {part.revision}: correct {part.variable}") from None
        except HfHubHTTPError as error:
            raise self._of_status(error, part) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Interrupted(
                f"no connection ({reason}); check the network, HTTPS_PROXY and HF_ENDPOINT"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, *_UNEXPECTED) as error:
            raise HubError(
                f"{hub} gives no usable answer ({type(error).__name__}): check HF_ENDPOINT"
            ) from None

    def _of_status(self, error: HfHubHTTPError, part: Part) -> Exception:
        """The error for an answer with an error status."""
        hub, status = self._endpoint, error.response.status_code
        if status in _RETRIED:
            return Interrupted(f"HTTP {status}", _retry_after_s(error.response.headers))
        if (
            status == HTTPStatus.UNAUTHORIZED
            and self._token
            and not isinstance(error, RepositoryNotFoundError)
        ):
            return HubError(f"{hub} refuses the token: correct HF_TOKEN")
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
            access = "its token has no access" if self._token else "it needs a token"
            return HubError(
                f"{hub} shows no repository {part.repository} (HTTP {status}): it does not exist, or"
                f" {access}: correct {part.variable} or set HF_TOKEN"
            )
        return HubError(f"{hub} answers HTTP {status} for {part.repository}: check HF_ENDPOINT")


def _listing(info: Any) -> Listing:
    """The listing of an answer. Raises `ValueError` for one that lacks digests: they become file names."""
    files = tuple(
        HubFile(
            sibling.rfilename,
            int(sibling.size),
            _digest(sibling.blob_id),
            _digest(sibling.lfs.sha256) if sibling.lfs else None,
        )
        for sibling in info.siblings or ()
        if sibling.size is not None
    )
    if not files:
        raise ValueError("no files")
    card: Any = info.card_data or {}
    licence = str(card.get("license_name") or card.get("license") or "")
    return Listing(_digest(info.sha), files, licence if licence and licence.isprintable() else None)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("no digest")
    return value


def _retry_after_s(headers: Any) -> float | None:
    """Seconds of a `Retry-After` header; None without one, or with a date."""
    value = str(headers.get("retry-after", "")).strip()
    return float(value) if value.isdigit() else None
