"""Submissions, retries, imports and callbacks that wait until a replica has what they are about."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from campaigns.replication import ReplicatedService, local_node
from ourvidz import dispatch
from ourvidz.embedded_redis import PrivateServer
from ourvidz.errors import Cancelled, WorkerUnavailable
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import image_job, publishing_to

pytestmark = pytest.mark.system


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicatedService]:
    """A primary and a replica. Submissions wait for half a second."""
    monkeypatch.setattr("ourvidz.ledger.connection.REPLICA_WAIT_S", 0.5)
    servers = [local_node(name) for name in ("primary", "replica")]
    with ReplicatedService(tmp_path / "service", servers=servers, sentinels=[]) as service:
        with redis.Redis.from_url(servers[0].server_url) as primary:
            # Until the first write is confirmed: Valkey calls a replica online before it has loaded its data.
            while not primary.set("key", "value") or primary.wait(1, 1000) < 1:
                continue
        yield service


def test_a_job_is_registered_when_the_replica_has_it(service: ReplicatedService) -> None:
    """A failover does not lose what was accepted."""
    primary, replica = service.servers
    ledger = Ledger(primary.server_url, replica_acks=1)
    assert ledger.register(image_job("a"), priority=6).created
    service.kill(primary)
    survivor = Ledger(replica.server_url)
    assert survivor.get("a") is not None


def test_an_unconfirmed_job_is_refused_until_the_replica_has_it(service: ReplicatedService) -> None:
    """Also when another shim gets it again, which writes no record and has sent nothing to the replica yet.
    Afterwards the same call returns the job."""
    primary, replica = service.servers
    ledger, other = (Ledger(primary.server_url, replica_acks=1) for _ in range(2))
    service.signal(replica, signal.SIGSTOP)
    for each in (ledger, other):
        with pytest.raises(WorkerUnavailable, match=r"is recorded, but 0 of 1 replicas .* under the same id"):
            each.register(image_job("a"), priority=6)
    record = ledger.get("a")
    assert record is not None
    assert record.status == "queued"
    service.signal(replica, signal.SIGCONT)
    admission = ledger.register(image_job("a"), priority=6)
    assert (admission.created, admission.same) == (False, True)


def test_an_unconfirmed_retry_is_refused_until_the_replica_has_it(service: ReplicatedService) -> None:
    """A retry is accepted work as a submission is. Repeated, it begins no further run."""
    primary, replica = service.servers
    ledger = Ledger(primary.server_url, replica_acks=1)
    record = ledger.register(image_job("a"), priority=6).record
    assert ledger.end(record, outcome=Outcome.failure(Cancelled("the job was cancelled")))
    service.signal(replica, signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(WorkerUnavailable, match=r"is recorded, but 0 of 1 replicas"):
            ledger.reopen("a", priority=6)
    service.signal(replica, signal.SIGCONT)
    assert ledger.reopen("a", priority=6).run == 2
    service.kill(primary)
    survivor = Ledger(replica.server_url).get("a")
    assert survivor is not None
    assert (survivor.status, survivor.run) == ("queued", 2)


def test_an_import_keeps_its_entry_until_the_replica_has_the_job(
    service: ReplicatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller at a list is gone: the entry is removed once a failover cannot lose its job any more."""
    primary, replica = service.servers
    settings = load_settings(_env_file=None, OURVIDZ_IMPORT_LISTS="sdxl_queue", OURVIDZ_REPLICA_ACKS=1)
    ledger = Ledger(primary.server_url, replica_acks=1)
    with (
        redis.Redis.from_url(primary.server_url, decode_responses=True) as client,
        publishing_to("memory://"),
        control.using(control.build(settings, ledger=ledger)),
    ):
        payload = {"id": "a", "type": "sdxl_image_fast", "prompt": "a lake", "user_id": "user-1"}
        client.rpush("sdxl_queue", json.dumps(payload))
        service.signal(replica, signal.SIGSTOP)
        with pytest.raises(WorkerUnavailable, match="0 of 1 replicas"):
            dispatch.import_lists()
        assert client.llen("ourvidz:importing:sdxl_queue") == 1
        service.signal(replica, signal.SIGCONT)
        assert dispatch.import_lists().accepted == 1
        assert client.llen("ourvidz:importing:sdxl_queue") == 0


def test_a_primary_that_refuses_writes_without_its_replica_is_an_outage(
    service: ReplicatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `min-replicas-to-write` is for; the caller is told to come again."""
    monkeypatch.setattr("ourvidz.ledger.connection.PATIENCE_S", 0.2)
    primary, replica = service.servers
    service.kill(replica)
    with redis.Redis.from_url(primary.server_url) as client:
        client.config_set("min-replicas-to-write", 1)
    for acks in (0, 1):
        with pytest.raises(WorkerUnavailable, match="takes no writes"):
            Ledger(primary.server_url, replica_acks=acks).register(image_job("a"), priority=6)


def test_a_callback_waits_for_the_replica(service: ReplicatedService) -> None:
    """A failover would lose the ending that the caller has heard of, and the job would end a second time."""
    primary, replica = service.servers
    ledger = Ledger(primary.server_url, replica_acks=1)
    ledger.register(image_job("a"), priority=6)
    service.signal(replica, signal.SIGSTOP)
    assert ledger.claim("a", 1, worker_id="w", lease_s=60, token="t") is not None
    with pytest.raises(WorkerUnavailable, match="0 of 1 replicas"):
        ledger.lease_event("a", lease_s=0, token="first")
    service.signal(replica, signal.SIGCONT)
    assert ledger.lease_event("a", lease_s=10, token="second") is not None


def test_without_the_setting_nothing_waits(start_redis: Callable[..., PrivateServer]) -> None:
    """A single server has no replica."""
    assert Ledger(start_redis().url).register(image_job("a"), priority=6).created
