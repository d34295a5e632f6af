"""Storages on the S3 server, and the values in failed assertions of the suite that back ends share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from campaigns.s3_server import S3Server
from ourvidz.storage import s3_client
from ourvidz.storage.s3 import S3Store
from ourvidz.storage.s3_client import S3Options

pytest.register_assert_rewrite("tests.storage.suite")

Open = Callable[..., S3Store]

_numbers = itertools.count()


@pytest.fixture
def open_storage(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open a storage on the S3 server, which repeats requests at once: `open_storage(option=…)`."""
    monkeypatch.setattr(s3_client, "PAUSE_S", 0.001)

    def start(**changes: Any) -> S3Store:
        options: dict[str, Any] = {
            "bucket": f"bucket-{next(_numbers)}",
            "endpoint": s3_server.url,
            "access_key_id": s3_server.access_key,
            "secret_access_key": s3_server.secret_key,
        }
        return S3Store(S3Options(**(options | changes)))

    return start


@pytest.fixture
def s3_store(open_storage: Open) -> S3Store:
    """An empty bucket."""
    storage = open_storage(prefix="installations/one")
    storage.create_buckets()
    return storage
