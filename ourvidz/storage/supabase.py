"""Storage in Supabase: its REST API, and resumable uploads for large files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from ourvidz.errors import NotFound, SettingsError, StorageError
from ourvidz.file_names import is_readable_key
from ourvidz.storage import tus
from ourvidz.storage.keys import is_segment, split_key, split_readable_key
from ourvidz.storage.remote import RemoteStore
from ourvidz.storage.store import StoredFile
from ourvidz.storage.supabase_answers import Page, describe, parse_page
from ourvidz.storage.supabase_api import TRANSFER_S, Answer, SupabaseAPI, upload_s

SINGLE_UPLOAD_BYTES = 6_000_000
"""Files above this size are uploaded in chunks, as the documentation of the API advises."""
LIST_PAGE = 1000
"""The most entries that one listing contains."""
DELETED_AT_ONCE = 100
"""How many files one request deletes."""
SIGNED_AT_ONCE = 250
"""How many URLs one request signs."""
UNSIGNED_S = 10.0
"""How long no URLs are asked for after a failure, in seconds."""
ERROR_BYTES = 64 << 10
"""How much is read of an answer at least: the form of an error is at its end."""
PROMPT_S = 5.0
"""Deadline of requests for which a caller or a start waits, in seconds."""
KEY_VARIABLE = "SUPABASE_SERVICE_KEY"
FRUITLESS_ROUNDS = 10
"""How often the files of a folder are listed that a request to delete them has left."""


class SupabaseStore(RemoteStore):
    """Stores every key as an object of a bucket of one project; implements `Store`.

    `buckets` are those that `create_buckets` creates, all of them private: URLs are always signed. No file is
    cached without asking the server, because a key can be written again.
    """

    def __init__(
        self,
        api: SupabaseAPI,
        *,
        buckets: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._buckets = tuple(buckets)
        self._clock = clock
        self._signs_again_at = -math.inf

    def __repr__(self) -> str:
        return f"SupabaseStore({self.location!r})"

    @property
    def location(self) -> str:
        """The URL of the API."""
        return self._api.base

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store `data` under `key`, replacing what was there. Readers see the old or the new bytes."""
        bucket, name = _split(key)
        if len(data) > SINGLE_UPLOAD_BYTES:
            return tus.upload(self._api, key, data, content_type=content_type)
        answer = self._api.send(
            "POST",
            f"/object/{bucket}/{name}",
            body=data,
            headers={"Content-Type": content_type, "x-upsert": "true"},
            timeout_s=upload_s(len(data)),
            repeat=False,
        )
        if not answer.ok:
            raise _failed("written", key, answer)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read the bytes under `key` from position `start` on, at most `length` of them; none behind the end.
        Raises `NotFound` if there is no such file."""
        path = _path_of(key)
        if length == 0:
            self.stat(key)
            return b""
        ranged = start > 0 or length is not None
        end = "" if length is None else start + length - 1
        headers = {"Range": f"bytes={start}-{end}"} if ranged else {}
        answer = self._api.send(
            "GET",
            f"/object/authenticated/{path}",
            headers=headers,
            timeout_s=TRANSFER_S,
            # A server that ignores the range sends a file of any size.
            at_most=None if length is None else max(start + length, ERROR_BYTES),
        )
        if answer.ok:
            # A server may ignore the range.
            skipped = start if answer.status == 200 else 0
            return answer.body[skipped : None if length is None else skipped + length]
        # What a range behind the end is answered with differs, and the file may be empty.
        if ranged and answer.status != 404 and self.stat(key).size <= start:
            return b""
        raise _failed("read", key, answer)

    def stat(self, key: str) -> StoredFile:
        """The size, time and content type of a file. Raises `NotFound` if there is none."""
        answer = self._api.send("GET", f"/object/info/{_path_of(key)}")
        if not answer.ok:
            raise _failed("read", key, answer)
        return answer.read(lambda info: describe(key, info, info["size"], info["content_type"]))

    def copy(self, source: str, key: str) -> None:
        """Copy the bytes and content type under `source` to `key`, replacing what was there. Raises
        `NotFound` if there are none under `source`. The server copies."""
        document = _transfer(source, key)
        answer = self._api.send(
            "POST",
            "/object/copy",
            document={**document, "copyMetadata": True},
            headers={"x-upsert": "true"},
            timeout_s=TRANSFER_S,
        )
        if not answer.ok:
            raise _failed("copied", source, answer)

    def move(self, source: str, key: str) -> None:
        """Move the bytes under `source` to `key`, replacing what was there. Raises `NotFound` if there are
        none under `source`.

        A rename by the server, which one of several movers makes. It replaces no file: where there is one, a
        copy and a deletion of `source`. A move whose answer was lost is a `StorageError` and not repeated
        here: repeated, it would find nothing.
        """
        answer = self._api.send(
            "POST",
            "/object/move",
            document=_transfer(source, key),
            timeout_s=TRANSFER_S,
            repeat=False,
            resend=False,
        )
        if answer.ok:
            return
        if answer.status != 409:
            raise _failed("moved", source, answer)
        self.copy(source, key)
        # Once, as the rename: repeated after a lost answer, it would find nothing.
        if not self._delete(*source.partition("/")[::2], repeat=False):
            raise _not_found(source)

    def list_files(self, folder: str) -> Iterator[StoredFile]:
        """Every file whose key starts with `folder` and a slash, by name."""
        bucket, name = _split(folder)
        for page in self._pages(bucket, f"{name}/"):
            yield from page.files

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder` that have keys, sorted."""
        bucket, name = _split(folder)
        prefix = f"{name}/"
        return sorted(
            found.removeprefix(prefix).strip("/")
            for page in self._pages(bucket, prefix, with_delimiter=True)
            for found in page.folders
            if is_segment(found.removeprefix(prefix).strip("/"))
        )

    def delete(self, key: str) -> None:
        """Delete `key`. Safe to call twice."""
        self._delete(*_split(key))

    def delete_folder(self, folder: str) -> None:
        """Delete every key that starts with `folder` and a slash, until none is found. Safe to call twice."""
        bucket, name = _split(folder)
        fruitless = 0
        while files := next((page.files for page in self._pages(bucket, f"{name}/") if page.files), []):
            names = [file.key.partition("/")[2] for file in files]
            deleted = sum(
                self._delete(bucket, *names[at : at + DELETED_AT_ONCE])
                for at in range(0, len(names), DELETED_AT_ONCE)
            )
            fruitless = 0 if deleted else fruitless + 1
            if fruitless == FRUITLESS_ROUNDS:
                raise StorageError(f"{folder} could not be deleted: its files are still there.")

    def urls(self, keys: Sequence[str], *, lifetime_s: float) -> dict[str, str]:
        """Signed URLs that end after `lifetime_s` seconds; none for a file that does not exist.

        After a failure of the storage none are asked for during `UNSIGNED_S` seconds, which raises
        `StorageError` at once: the callers of a shim would wait for it, one thread each.
        """
        if self._clock() < self._signs_again_at:
            raise StorageError("URLs could not be signed a moment ago.")
        names: dict[str, list[str]] = {}
        for key in dict.fromkeys(filter(is_readable_key, keys)):
            bucket, _, name = key.partition("/")
            names.setdefault(bucket, []).append(name)
        urls: dict[str, str] = {}
        for bucket, all_names in names.items():
            for at in range(0, len(all_names), SIGNED_AT_ONCE):
                part = all_names[at : at + SIGNED_AT_ONCE]
                urls |= self._signed(bucket, part, max(1, math.ceil(lifetime_s)))
        return urls

    def create_buckets(self) -> list[str]:
        """Create the buckets that are missing, private ones. Returns their names."""
        created = []
        for name in self._missing_buckets():
            document = {"id": name, "name": name, "public": False}
            answer = self._api.send("POST", "/bucket", document=document)
            if answer.ok:
                created.append(name)
            elif answer.status != 409:
                raise StorageError(f"The bucket {name} could not be created: {answer.reason}.")
        return created

    def check_access(self) -> None:
        """Ask for the list of buckets. Raises `SettingsError` if the project refuses the key or lacks a
        bucket, `StorageError` if it does not answer."""
        if missing := self._missing_buckets():
            raise SettingsError(
                f"OURVIDZ_STORAGE: {self.location} has no bucket {', '.join(missing)};"
                " `ourvidz storage init` creates it",
                field="OURVIDZ_STORAGE",
            )

    def _missing_buckets(self) -> list[str]:
        answer = self._api.send("GET", "/bucket", timeout_s=PROMPT_S)
        if answer.key_refused:
            reason = answer.reason.replace("the storage", self.location, 1)
            raise SettingsError(f"{KEY_VARIABLE}: {reason}", field=KEY_VARIABLE)
        if not answer.ok:
            raise StorageError(f"{self.location} does not list its buckets: {answer.reason}.")
        existing = answer.read(lambda buckets: {bucket["id"] for bucket in buckets})
        return [name for name in self._buckets if name not in existing]

    def _delete(self, bucket: str, *names: str, repeat: bool = True) -> int:
        """Delete files and return how many there were; with `repeat` false in one request."""
        document = {"prefixes": names}
        answer = self._api.send(
            "DELETE", f"/object/{bucket}", document=document, repeat=repeat, resend=repeat
        )
        if answer.bucket_missing:
            return 0
        if not answer.ok:
            raise _failed("deleted", f"{bucket}/{names[0]}", answer)
        return answer.read(len)

    def _pages(self, bucket: str, prefix: str, *, with_delimiter: bool = False) -> Iterator[Page]:
        """The files, and with a delimiter the folders, whose names start with `prefix`."""
        document = {"prefix": prefix, "limit": LIST_PAGE, "with_delimiter": with_delimiter}
        while True:
            answer = self._api.send("POST", f"/object/list-v2/{bucket}", document=document)
            if answer.bucket_missing:
                yield Page([], [], None)
                return
            if not answer.ok:
                raise StorageError(f"{bucket}/{prefix} could not be listed: {answer.reason}.")
            page = answer.read(lambda found: parse_page(bucket, prefix, found))
            yield page
            if page.cursor is None:
                return
            document["cursor"] = page.cursor

    def _signed(self, bucket: str, names: list[str], lifetime_s: int) -> dict[str, str]:
        """URLs of existing files of a bucket, by key."""
        document = {"expiresIn": lifetime_s, "paths": names}
        # Somebody waits for the answer that the URLs are for; without them it has keys.
        answer = self._api.send(
            "POST", f"/object/sign/{bucket}", document=document, timeout_s=PROMPT_S, repeat=False
        )
        if answer.bucket_missing:
            return {}
        if not answer.ok:
            if answer.temporary or answer.key_refused:
                # Not after a refusal of these names: it would keep the URLs of all others.
                self._signs_again_at = self._clock() + UNSIGNED_S
            raise StorageError(f"URLs could not be signed: {answer.reason}.")
        return answer.read(
            lambda entries: {
                f"{bucket}/{entry['path']}": f"{self._api.base}{_encoded(entry['signedURL'])}"
                for entry in entries
                if entry["signedURL"]
            }
        )


def _split(key: str) -> tuple[str, str]:
    """The bucket of a key, and the name in it."""
    bucket, *rest = split_key(key)
    return bucket, "/".join(rest)


def _path_of(key: str) -> str:
    """The path of a file that is only read, as a request line has it. Raises `InvalidParameters`."""
    return quote("/".join(split_readable_key(key)), safe="/:")


def _encoded(signed: str) -> str:
    """The path and query of a signed URL, with a name encoded that the server has left as it is. Names have
    no `%`, tokens no `?`."""
    path, mark, query = signed.rpartition("?")
    return quote(path, safe="/%:!$&'()*+,;=@") + mark + query


def _transfer(source: str, key: str) -> dict[str, str]:
    """The document of a copy or a move."""
    (bucket, name), (target_bucket, target) = _split(source), _split(key)
    return {
        "bucketId": bucket,
        "sourceKey": name,
        "destinationBucket": target_bucket,
        "destinationKey": target,
    }


def _failed(verb: str, key: str, answer: Answer) -> NotFound | StorageError:
    """The error of a request about a key: callers see it, so it contains nothing that the server wrote."""
    if answer.status == 404 and verb != "written" and not answer.bucket_missing:
        return _not_found(key)
    return StorageError(f"{key} could not be {verb}: {answer.reason}.")


def _not_found(key: str) -> NotFound:
    return NotFound(f"There is nothing under {key}.", field="key", value=key)
