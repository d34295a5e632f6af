"""Storage in one bucket of S3 or of a server with its API: R2, MinIO, Ceph, Backblaze B2 and others.

Names of S3 buckets may have no underscore, so the buckets of keys are folders of the one S3 bucket:
`{prefix}/{bucket}/{user}/{job}/{file}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

import obstore
from obstore.store import S3Store as Client

from ourvidz.errors import SettingsError, StorageError
from ourvidz.file_names import is_own_key
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.storage.keys import is_segment, split_key, split_readable_key
from ourvidz.storage.remote import RemoteStore
from ourvidz.storage.s3_client import (
    ANSWER_TIMEOUT_S,
    DEFAULT_REGION,
    TRANSFER_TIMEOUT_S,
    S3Options,
    connect,
)
from ourvidz.storage.s3_errors import (
    LIBRARY_ERRORS,
    UNREADABLE_NAME,
    deleting,
    is_no_bucket,
    is_refusal,
    is_unsatisfiable_range,
    reading,
    reason_of,
    request,
    to_correct,
)
from ourvidz.storage.store import StoredFile

PART_BYTES = 5 << 20
"""Size of the parts of a large file, the smallest that S3 allows: a cut costs at most one part."""
PARALLEL_PARTS = 4
DELETION_ROUNDS = 5
"""How often a folder is listed and emptied. After the first two rounds only files are found that are stored
meanwhile."""
NO_BUCKET = "no_bucket"
"""The kind of the `SettingsError` for a bucket that does not exist."""
REGIONS_WITHOUT_CONSTRAINT = frozenset({DEFAULT_REGION, "auto"})
"""Regions in which a bucket is created without naming them; `auto` is that of R2."""


class S3Store(RemoteStore):
    """Stores every key as an object; implements `Store`.

    Requests are repeated after a 5xx or a broken connection, `RETRIES` times within `RETRY_TIMEOUT_S`. Files
    above `PART_BYTES` are uploaded in parts, of which only those that failed are sent again; a file appears
    when all are there.
    """

    def __init__(self, options: S3Options) -> None:
        self._options = options

    @property
    def bucket(self) -> str:
        """The name of the S3 bucket."""
        return self._options.bucket

    def __repr__(self) -> str:
        return f"S3Store({self.location!r})"

    @property
    def location(self) -> str:
        """The bucket and prefix, and the server if it is not AWS's."""
        options = self._options
        place = f"s3://{'/'.join(filter(None, (options.bucket, options.prefix)))}"
        return f"{place} at {options.endpoint}" if options.endpoint else place

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store `data` under `key`, replacing what was there."""
        path = self._path(key)
        with request("written", key):
            obstore.put(
                self._transfers,
                path,
                data,
                attributes={"Content-Type": content_type},
                chunk_size=PART_BYTES,
                max_concurrency=PARALLEL_PARTS,
            )

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read the bytes under `key` from position `start` on, at most `length` of them."""
        path = self._readable_path(key)
        if length == 0:
            self.stat(key)
            return b""
        options: Any = {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        with reading("read", key):
            try:
                return bytes(obstore.get(self._transfers, path, options=options).bytes())
            except LIBRARY_ERRORS as error:
                if is_unsatisfiable_range(error):
                    return b""
                raise

    def stat(self, key: str) -> StoredFile:
        """The size, time and content type of a file."""
        path = self._readable_path(key)
        with reading("read", key):
            answer = obstore.get(self._store, path, options={"head": True})
            return self._stored_file(answer.meta, answer.attributes.get("Content-Type"))

    def copy(self, source: str, key: str) -> None:
        """Copy a file on the server."""
        path, target = self._path(source), self._path(key)
        with reading("copied", source):
            obstore.copy(self._transfers, path, target)

    def move(self, source: str, key: str) -> None:
        """Copy a file on the server and delete `source`.

        A deletion of both that overlaps with this has ended before the copy, or removes both, or has removed
        `source` when it is looked for after the copy: then this raises `NotFound`.
        """
        self.copy(source, key)
        self.stat(source)
        self.delete(source)

    def list_files(self, folder: str) -> Iterator[StoredFile]:
        """Every file below `folder`; objects whose names are no keys are left out."""
        for meta in self._list(folder):
            file = self._stored_file(meta, None)
            if is_own_key(file.key):
                yield file

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below `folder`, sorted."""
        path = self._path(folder)
        with request("listed", folder):
            listed = obstore.list_with_delimiter(self._store, path)
        names = (name.rstrip("/").rpartition("/")[2] for name in listed["common_prefixes"])
        return sorted(filter(is_segment, names))

    def delete(self, key: str) -> None:
        """Delete `key`."""
        path = self._path(key)
        with deleting(key):
            obstore.delete(self._store, path)

    def delete_folder(self, folder: str) -> None:
        """Delete every object below `folder`, whatever its name, until none is listed.

        The empty objects that stand for folders in the web pages of some services stay: the library cannot
        name them. Raises `StorageError` if anything else is listed again and again, and if another program
        has given an object a name that the library cannot read, after everything else was deleted.
        """
        try:
            self._delete_listed(folder)
        except StorageError as error:
            if error.kind == UNREADABLE_NAME:
                self._delete_by_level(folder)
            raise

    def _delete_listed(self, folder: str) -> None:
        for _ in range(DELETION_ROUNDS):
            listed = {str(meta["path"]): int(meta["size"]) for meta in self._list(folder)}
            if not listed:
                return
            with deleting(folder):
                obstore.delete(self._store, list(listed))
        if any(listed.values()):
            raise StorageError(f"{folder} could not be deleted: files are listed that were deleted.")

    def _delete_by_level(self, folder: str) -> None:
        """Delete the objects of those levels below `folder` that have no name which cannot be read."""
        levels = [self._path(folder)]
        while levels:
            try:
                with request("listed", folder):
                    listed = obstore.list_with_delimiter(self._store, levels.pop())
            except StorageError as error:
                if error.kind != UNREADABLE_NAME:
                    raise
                continue
            levels += listed["common_prefixes"]
            with deleting(folder):
                obstore.delete(self._store, [str(meta["path"]) for meta in listed["objects"]])

    def urls(self, keys: Sequence[str], *, lifetime_s: float) -> dict[str, str]:
        """Signed URLs, made without a request."""
        paths = [self._readable_path(key) for key in keys]
        if not paths:
            return {}
        with request("signed", keys[0]):
            signed = obstore.sign(self._public_store, "GET", paths, timedelta(seconds=lifetime_s))
        return dict(zip(keys, signed, strict=True))

    def create_buckets(self) -> list[str]:
        """Create the S3 bucket if it is missing. Returns its name if it was."""
        options = self._options
        try:
            self.check_access()
        except SettingsError as error:
            if error.kind != NO_BUCKET:
                raise
        else:
            return []
        body = b""
        if options.region not in REGIONS_WITHOUT_CONSTRAINT:
            region = f"<LocationConstraint>{options.region}</LocationConstraint>"
            body = f"<CreateBucketConfiguration>{region}</CreateBucketConfiguration>".encode()
        with request("signed", options.bucket):
            url = obstore.sign(self._store, "PUT", "", timedelta(minutes=1))
        response = HttpClient(timeout_s=ANSWER_TIMEOUT_S).put(url, body=body, headers={})
        if isinstance(response, RequestFailure):
            raise StorageError(f"The bucket {options.bucket} could not be created: {response.reason}.")
        if response.status != 200:
            reason = reason_of(f"status code: {response.status} {response.body.decode(errors='replace')}")
            raise StorageError(f"The bucket {options.bucket} could not be created: {reason}.")
        return [options.bucket]

    def check_access(self) -> None:
        """Ask for the list of files. Raises `SettingsError` if the server refuses the key or has no such
        bucket, `StorageError` if it does not answer."""
        try:
            # A folder without files: the library cannot read every name that others may have given theirs.
            path = "/".join(filter(None, (self._options.prefix, "checkpoints/access")))
            next(iter(obstore.list(self._store, path, chunk_size=1)), None)
        except LIBRARY_ERRORS as error:
            reason = reason_of(error)
            if not is_refusal(error):
                raise StorageError(f"{self.location} does not answer: {reason}.") from None
            what = to_correct(error)
            kind = NO_BUCKET if is_no_bucket(error) else None
            raise SettingsError(f"{what}: {self.location}: {reason}", field=what, kind=kind) from None

    def _list(self, folder: str) -> Iterator[Any]:
        path = self._path(folder)
        with request("listed", folder):
            for page in obstore.list(self._store, path):
                # An object that stands for the folder itself.
                yield from (meta for meta in page if meta["path"] != path)

    def _path(self, key: str) -> str:
        """The path of a key in the S3 bucket. Raises `InvalidParameters`."""
        split_key(key)
        return self._prefixed(key)

    def _readable_path(self, key: str) -> str:
        """As `_path`, of a file that is only read."""
        split_readable_key(key)
        return self._prefixed(key)

    def _prefixed(self, key: str) -> str:
        return f"{self._options.prefix}/{key}" if self._options.prefix else key

    def _stored_file(self, meta: Any, content_type: str | None) -> StoredFile:
        key = str(meta["path"])[len(self._options.prefix) :].lstrip("/")
        return StoredFile(key, int(meta["size"]), meta["last_modified"].timestamp(), content_type)

    @cached_property
    def _store(self) -> Client:
        return connect(self._options, self._options.endpoint, timeout_s=ANSWER_TIMEOUT_S)

    @cached_property
    def _transfers(self) -> Client:
        """For requests that carry or copy the bytes of files."""
        return connect(self._options, self._options.endpoint, timeout_s=TRANSFER_TIMEOUT_S)

    @cached_property
    def _public_store(self) -> Client:
        """Signs URLs for the host that browsers call; the host is part of the signature."""
        public = self._options.public_endpoint
        return connect(self._options, public, timeout_s=ANSWER_TIMEOUT_S) if public else self._store
