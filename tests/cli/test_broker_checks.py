"""The checks of the Redis server, on real servers with real options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.cli import broker_checks
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings

MakeSettings = Callable[..., Settings]
PRODUCTION = {"OURVIDZ_PROFILE": "production", "SUPABASE_URL": "https://abc.supabase.co"}


def test_a_redis_server_that_evicts_keys_is_a_failure(make_settings: MakeSettings, start_redis: Any) -> None:
    """The default policy of many hosted servers deletes queued jobs when memory is short."""
    server = start_redis("--maxmemory-policy", "allkeys-lru")
    check = broker_checks.check_broker(make_settings(OURVIDZ_REDIS_URL=server.url))
    assert check.status == "failed"
    assert "allkeys-lru" in check.reason
    assert "noeviction" in check.fix


def test_a_redis_server_that_evicts_nothing_passes(make_settings: MakeSettings, redis_url: str) -> None:
    """The reason names the version and the policy."""
    check = broker_checks.check_broker(make_settings(OURVIDZ_REDIS_URL=redis_url))
    assert (check.status, "noeviction" in check.reason) == ("ok", True)


def test_an_unreachable_redis_server_is_a_failure_with_its_variable(
    make_settings: MakeSettings, unused_port: int
) -> None:
    """The fix names the variable that holds the URL."""
    check = broker_checks.check_broker(make_settings(OURVIDZ_REDIS_URL=f"redis://127.0.0.1:{unused_port}/0"))
    assert check.status == "failed"
    assert "OURVIDZ_REDIS_URL" in check.fix


def test_without_a_redis_server_the_embedded_one_is_named(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """`ourvidz up` starts one if there is a binary; without a binary the check fails."""
    assert "ourvidz up" in broker_checks.check_broker(make_settings()).reason
    missing = broker_checks.check_broker(make_settings(REDIS_SERVER_BIN=str(tmp_path / "none")))
    assert (missing.status, "ourvidz[embedded]" in missing.fix) == ("failed", True)


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), "ok", "loses nothing, replicas: 0"),
        (("--appendonly", "yes"), "ok", "loses up to 2 s"),
        (("--appendonly", "yes", "--appendfsync", "no"), "failed", "about 30 s"),
        ((), "failed", "all jobs are lost"),
        (("--save", "3600 1"), "failed", "since its last snapshot"),
    ],
)
def test_a_server_that_forgets_accepted_jobs_is_a_failure(
    make_settings: MakeSettings, start_redis: Any, options: tuple[str, ...], status: str, reason: str
) -> None:
    """An answer of 202 means no more than what the server stores."""
    check = broker_checks.check_durability(make_settings(OURVIDZ_REDIS_URL=start_redis(*options).url))
    assert (check.status, reason in check.reason) == (status, True), check.reason


def test_the_replicas_that_submissions_wait_for_must_be_connected(
    make_settings: MakeSettings, start_redis: Any
) -> None:
    """Otherwise every submission would be answered 503."""
    server = start_redis("--appendonly", "yes")
    settings = make_settings(OURVIDZ_REDIS_URL=server.url, OURVIDZ_REPLICA_ACKS=1)
    check = broker_checks.check_durability(settings)
    assert (check.status, "OURVIDZ_REPLICA_ACKS" in check.fix) == ("failed", True)


def test_a_replica_is_a_failure(make_settings: MakeSettings, start_redis: Any) -> None:
    """It answers every read and takes no write."""
    primary = start_redis()
    replica = start_redis("--replicaof", "127.0.0.1", str(primary.port))
    check = broker_checks.check_broker(make_settings(OURVIDZ_REDIS_URL=replica.url))
    assert (check.status, check.fix) == ("failed", "name the primary")


def test_a_version_that_lacks_commands_is_a_failure(
    make_settings: MakeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the first import or message would be harder to read."""
    monkeypatch.setattr(broker_checks, "OLDEST_VERSION", (99, 0))
    check = broker_checks.check_broker(make_settings(OURVIDZ_REDIS_URL=redis_url))
    assert (check.status, "too old" in check.reason) == ("failed", True)


def test_a_server_that_tells_little_passes(make_settings: MakeSettings, start_redis: Any) -> None:
    """Hosted servers forbid CONFIG; what they do not say cannot be checked."""
    server = start_redis("--appendonly", "yes", "--rename-command", "CONFIG", "hidden")
    check = broker_checks.check_durability(make_settings(OURVIDZ_REDIS_URL=server.url))
    assert (check.status, "cannot be read" in check.reason) == ("ok", True)


def test_the_production_profile_refuses_a_server_that_evicts_keys(
    make_settings: MakeSettings, start_redis: Any, redis_url: str, unused_port: int
) -> None:
    """It would lose jobs without a trace under load. A server that is away is waited for, as ever."""
    evicting = start_redis("--maxmemory-policy", "volatile-lru").url
    with pytest.raises(SettingsError, match="volatile-lru"):
        broker_checks.require_no_eviction(make_settings(**PRODUCTION, OURVIDZ_REDIS_URL=evicting))
    broker_checks.require_no_eviction(make_settings(OURVIDZ_REDIS_URL=evicting))
    broker_checks.require_no_eviction(make_settings(**PRODUCTION, OURVIDZ_REDIS_URL=redis_url))
    away = f"redis://127.0.0.1:{unused_port}/0"
    broker_checks.require_no_eviction(make_settings(**PRODUCTION, OURVIDZ_REDIS_URL=away))
