"""The ledger on Redis: outages, lost replies, memory use and records of other releases."""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff

from ourvidz.errors import NewerRelease, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import BrokerEntry, Verdict

FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def typical_outcome() -> Outcome:
    """The outcome of an SDXL job with three images."""
    assets = tuple(
        Asset(
            type="image",
            key=f"workspace-temp/6f9619ff-8b86-d011-b42d-00c04fc964ff/0f8fad5b-d9cb-469f-a165-70867728950e/{n}.png",
            thumbnail_key=f"workspace-temp/6f9619ff-8b86-d011-b42d-00c04fc964ff/0f8fad5b-d9cb-469f-a165/{n}.thumb.webp",
            metadata={
                "width": 1024,
                "height": 1024,
                "format": "png",
                "batch_size": 3,
                "steps": 25,
                "effective_steps": 25,
                "guidance_scale": 7.5,
                "seed": 12345,
                "file_size_bytes": 2048576,
                "asset_index": n,
            },
        )
        for n in range(3)
    )
    metadata = {
        "generation_time": 15.5,
        "processing_time": 16.1,
        "vram_used": 8192,
        "vram_total": 49140,
        "vram_utilization": 0.17,
        "vram_used_gb": 8.0,
        "vram_total_gb": 48.0,
        "compel_success": True,
        "enhancement_strategy": "compel",
        "final_prompt_type": "conditioning_tensor",
        "worker_version": "0.1.0",
    }
    return Outcome(status="completed", assets=assets, metadata=metadata)


class CountingProxy:
    """A TCP proxy that counts requests and, if `lose_next` is set, drops the next script's reply."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose_next = threading.Event()
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            cut = threading.Event()
            threading.Thread(target=self._forward_requests, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._forward_replies, args=(client, server, cut), daemon=True).start()

    def _forward_requests(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        while request := _received(client):
            self.requests.append(request)
            if self.lose_next.is_set() and b"EVALSHA" in request:
                self.lose_next.clear()
                cut.set()
            server.sendall(request)
        server.close()

    def _forward_replies(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        while (reply := _received(server)) and not cut.is_set():
            client.sendall(reply)
        client.shutdown(socket.SHUT_RDWR)
        client.close()

    def close(self) -> None:
        self._listener.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except OSError:
        return b""


@pytest.fixture
def proxy(redis_url: str) -> Iterator[CountingProxy]:
    """A counting proxy in front of the test server."""
    proxy = CountingProxy(int(redis_url.rsplit(":", 1)[1].split("/")[0]))
    yield proxy
    proxy.close()


@pytest.fixture
def proxied_ledger(proxy: CountingProxy, image_job: Callable[..., object]) -> Iterator[Ledger]:
    """A ledger that connects through the proxy. Its scripts are loaded and its connections are open."""
    ledger = Ledger(f"redis://127.0.0.1:{proxy.port}/0")
    for n in range(2):
        warm_up(ledger, image_job(f"warm-{n}"))
    yield ledger
    ledger.close()


def warm_up(ledger: Ledger, job: object) -> None:
    """Call every verb once, so that the server has cached every script."""
    ledger.register(job, priority=6)
    ledger.mark_published(job.id, 1)
    ledger.raise_priority(job.id, run=1, priority=3)
    for verb in ("release", "lose", "end"):
        claim = ledger.claim(job.id, 1, worker_id="w", lease_s=10, token=verb)
        ledger.step(claim, progress=1)
        ledger.renew(claim, lease_s=10)
        if verb == "release":
            ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        elif verb == "lose":
            ledger.rescue(claim)
        else:
            ledger.end(claim, outcome=FAILED)
    for n in range(3):
        ledger.postpone(
            ledger.lease_event(job.id, lease_s=30, token=f"p{n}"), due_in_s=0, status=None, error="x"
        )
        ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token=f"t{n}"), status=200)
    ledger.dead_letter(ledger.lease_event(job.id, lease_s=30, token="b"), status=400, error="x")
    ledger.replay(ledger.list_events("dead")[0].event_id)
    ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token="r"), status=200)
    ledger.reopen(job.id, priority=6)
    ledger.end(ledger.get(job.id), outcome=FAILED)
    ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token="z"), status=200)
    ledger.delete(job.id)
    ledger.record_sweep(silence_s=6, lease_s=10)


class TestRoundTrips:
    def test_frequent_verbs_need_one_round_trip_each(self, proxied_ledger, proxy, image_job):
        """With a remote server each round trip adds latency, and hosted Redis charges for each command."""
        proxied_ledger.register(image_job(), priority=6)

        def round_trips(verb: Callable[[], object]) -> int:
            before = len(proxy.requests)
            verb()
            return len(proxy.requests) - before

        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        assert claim is not None
        round_trips_by_verb = {
            "claim": round_trips(
                lambda: proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
            ),
            "step": round_trips(
                lambda: proxied_ledger.step(claim, progress=3, items=[("token", {"text": "x"})])
            ),
            "renew": round_trips(lambda: proxied_ledger.renew(claim, lease_s=10)),
            "end": round_trips(lambda: proxied_ledger.end(claim, outcome=typical_outcome())),
            "get": round_trips(lambda: proxied_ledger.get("job-1")),
            "take": round_trips(lambda: proxied_ledger.lease_event("job-1", lease_s=30, token="t")),
            "delivered": round_trips(
                lambda: proxied_ledger.mark_delivered(
                    proxied_ledger.lease_event("job-1", lease_s=30, token="t"), status=200
                )
            )
            - 1,
        }
        assert round_trips_by_verb == dict.fromkeys(round_trips_by_verb, 1)


class TestLostReplies:
    """The connection breaks after the server has executed a script, so the client repeats the call."""

    def test_a_repeated_registration_reports_that_it_created_the_job(self, proxied_ledger, proxy, image_job):
        """Otherwise the caller would not publish the job's message."""
        proxy.lose_next.set()
        assert proxied_ledger.register(image_job(), priority=6).created
        assert not proxy.lose_next.is_set()
        assert not proxied_ledger.register(image_job(), priority=6).created
        assert proxied_ledger.queue_depth("sdxl_queue") == 1

    def test_a_repeated_claim_returns_the_claim_of_the_first_call(self, proxied_ledger, proxy, image_job):
        """Otherwise the job would be leased to a worker that does not know it."""
        proxied_ledger.register(image_job(), priority=6)
        proxy.lose_next.set()
        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        assert (claim.record.attempt, claim.token) == (1, "a")
        assert len(proxied_ledger.list_events("pending")) == 1

    def test_a_repeated_step_adds_its_items_once(self, proxied_ledger, proxy, image_job):
        """The stream does not get the same tokens twice."""
        proxied_ledger.register(image_job(), priority=6)
        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        proxy.lose_next.set()
        assert proxied_ledger.step(claim, progress=5, items=[("token", {"text": "x"})]) is Verdict.CONTINUE
        assert [item.kind for item in proxied_ledger.stream("job-1")] == [
            "state",
            "state",
            "token",
            "progress",
        ]

    def test_a_repeated_end_adds_one_event_and_returns_true(self, proxied_ledger, proxy, image_job):
        """The worker learns that its outcome was committed."""
        proxied_ledger.register(image_job(), priority=6)
        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        proxy.lose_next.set()
        assert proxied_ledger.end(claim, outcome=typical_outcome())
        assert [event.kind for event in proxied_ledger.list_events("pending")].count("completed") == 1

    def test_repeated_releases_and_rescues_count_once(self, proxied_ledger, proxy, image_job):
        """The failure counts once, and the repeated call returns True."""
        proxied_ledger.register(image_job(), priority=6)
        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        proxy.lose_next.set()
        assert proxied_ledger.release(claim, code="OOM_ERROR", due_in_s=0)
        claim = proxied_ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="b")
        proxy.lose_next.set()
        assert proxied_ledger.rescue(claim)
        assert proxied_ledger.get("job-1").failures == {"OOM_ERROR": 1, "WORKER_LOST": 1}

    def test_repeated_outbox_calls_count_one_delivery(self, proxied_ledger, proxy, image_job):
        """Neither deliveries nor retries are counted twice."""
        proxied_ledger.register(image_job(), priority=6)
        proxied_ledger.end(proxied_ledger.get("job-1"), outcome=FAILED)
        proxy.lose_next.set()
        event = proxied_ledger.lease_event("job-1", lease_s=30, token="t")
        assert event.deliveries == 1
        before = proxied_ledger.counters()
        proxy.lose_next.set()
        proxied_ledger.postpone(event, due_in_s=0, status=500, error="down")
        event = proxied_ledger.lease_event("job-1", lease_s=30, token="t2")
        proxy.lose_next.set()
        proxied_ledger.mark_delivered(event, status=200)
        after = proxied_ledger.counters()
        for name in ("callbacks.retried", "callbacks.delivered"):
            assert after[name] == before[name] + 1

    def test_a_repeated_operator_call_raises_no_conflict(self, proxied_ledger, proxy, image_job):
        """Repeated retries and deletions return the result of the first call."""
        proxied_ledger.register(image_job(), priority=6)
        proxied_ledger.end(proxied_ledger.get("job-1"), outcome=FAILED)
        proxy.lose_next.set()
        assert proxied_ledger.reopen("job-1", priority=6).run == 2
        proxy.lose_next.set()
        assert proxied_ledger.raise_priority("job-1", run=2, priority=3)
        proxied_ledger.end(proxied_ledger.get("job-1"), outcome=FAILED)
        for token in ("a", "b"):
            proxied_ledger.mark_delivered(
                proxied_ledger.lease_event("job-1", lease_s=30, token=token), status=200
            )
        proxy.lose_next.set()
        assert proxied_ledger.delete("job-1").run == 2
        assert proxied_ledger.get("job-1") is None


@pytest.mark.system
class TestOutages:
    def test_calls_are_retried_while_the_server_restarts(self, start_redis, image_job):
        """Acknowledged writes are kept, and a call during the restart succeeds."""
        server = start_redis("--appendonly", "yes", "--appendfsync", "always")
        ledger = Ledger(server.url)
        ledger.register(image_job(), priority=6)
        server.kill()
        restart = threading.Timer(1.0, server.start)
        restart.start()
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        restart.join()
        assert claim is not None
        assert claim.job == image_job()
        assert ledger.step(claim, progress=5) is Verdict.CONTINUE
        ledger.close()

    def test_calls_are_retried_while_the_server_refuses_writes(self, start_redis, image_job):
        """A failover, a full disk or an exceeded quota is temporary, so the call is retried."""
        server = start_redis("--appendonly", "no", "--min-replicas-to-write", "1")
        ledger = Ledger(server.url)
        assert time_to_failure_s(lambda: ledger.record_sweep(silence_s=6, lease_s=10)) > 1.0
        with redis.Redis.from_url(server.url) as client:
            allow = threading.Timer(1.0, client.config_set, ("min-replicas-to-write", 0))
            allow.start()
            assert ledger.register(image_job(), priority=6).created
            allow.join()
        ledger.close()

    def test_a_call_to_a_hanging_server_fails_within_14_seconds(self, start_redis):
        """The time bounds how long the threads of the shim are blocked."""
        server = start_redis("--appendonly", "no")
        ledger = Ledger(server.url)
        ledger.ping()
        server.signal(signal.SIGSTOP)
        assert time_to_failure_s(lambda: ledger.get("job-1")) < 14
        server.signal(signal.SIGCONT)
        assert ledger.get("job-1") is None
        ledger.close()

    def test_a_step_fails_within_two_and_a_half_seconds(self, start_redis, image_job):
        """A short timeout, so that the job continues while the server is unreachable."""
        server = start_redis("--appendonly", "no")
        ledger = Ledger(server.url)
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        ledger.step(claim, progress=1)
        server.signal(signal.SIGSTOP)
        assert time_to_failure_s(lambda: ledger.step(claim, progress=2)) < 2.5
        server.signal(signal.SIGCONT)
        assert ledger.step(claim, progress=3) is Verdict.CONTINUE
        server.kill()
        assert time_to_failure_s(lambda: ledger.step(claim, progress=4)) < 2.5
        assert time_to_failure_s(ledger.ping) < 2.5
        ledger.close()

    def test_a_long_outage_raises_an_error_with_a_readable_message(self, monkeypatch):
        """Submissions are rejected with 503 and this message."""
        monkeypatch.setattr("ourvidz.ledger.connection.PATIENT_RETRIES", (NoBackoff(), 1))
        ledger = Ledger("redis://127.0.0.1:1/0")
        with pytest.raises(WorkerUnavailable, match="the job store cannot be reached"):
            ledger.get("job-1")

    def test_a_server_without_free_memory_is_unavailable(self, start_redis, image_job):
        """A job that cannot be recorded is not accepted."""
        server = start_redis("--appendonly", "no", "--maxmemory-policy", "noeviction")
        ledger = Ledger(server.url)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1mb")
        with pytest.raises(WorkerUnavailable, match="takes no writes"):
            ledger.register(image_job(), priority=6)
        ledger.close()


def time_to_failure_s(verb: Callable[[], object]) -> float:
    """Seconds until a call raises that the ledger is unavailable."""
    start = time.monotonic()
    with pytest.raises(WorkerUnavailable):
        verb()
    return time.monotonic() - start


class TestMemoryUse:
    def test_a_job_takes_less_than_4_kib_while_it_waits_and_6_when_it_has_ended(self, redis_url, image_job):
        """A million ended jobs then need less than 6 GiB. What is kept for a day or an hour comes on top."""
        ledger = Ledger(redis_url)
        job_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
        prompt = (
            "a lighthouse on a cliff above a calm sea at dawn, seagulls, soft light, detailed clouds, " * 2
        )
        job = image_job(job_id, user_id="6f9619ff-8b86-d011-b42d-00c04fc964ff", prompt=prompt, num_images=3)
        entry = BrokerEntry("broker:sdxl_queue", "m" * 1000)
        ledger.register(job, priority=6, entry=entry)
        waiting = {kind: size for kind, size in sizes_by_kind(redis_url).items() if kind != "broker"}
        assert "stream" not in waiting
        assert sum(waiting.values()) < 4 * 1024, waiting
        claim = ledger.claim(job_id, 1, worker_id="sdxl@host-gpu0", lease_s=10, token="a")
        for n in range(6):
            ledger.step(claim, progress=16.0 * n)
        folder = f"workspace-temp/{claim.record.user_id}/{job_id}/.attempts/{claim.fence}.a"
        ledger.end(claim, outcome=typical_outcome(), worker_id="sdxl@host-gpu0", emptied_folders=[folder])
        for token in ("p", "t"):
            ledger.mark_delivered(ledger.lease_event(job_id, lease_s=30, token=token), status=200)
        sizes = sizes_by_kind(redis_url)
        ledger.close()
        passing = {"event", "stream", "call", "broker"}
        shared = {"order", "fence", "clock", "counters", "usage", "queue_seen", "claimed", "attempt_folders"}
        lasting = {kind: size for kind, size in sizes.items() if kind not in passing | shared}
        assert {"job", "doc"} <= set(lasting)
        assert sum(lasting.values()) < 6 * 1024, lasting
        assert sizes["stream"] < 1024, sizes
        assert sizes["event"] < 4 * 1024, sizes
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            for kind, longest_s in (("job", 8 * 86400), ("doc", 8 * 86400), ("stream", 3600), ("call", 120)):
                for name in client.scan_iter(f"ourvidz:{kind}:*"):
                    assert 0 < client.ttl(name) <= longest_s
            assert (
                0
                < client.ttl(f"ourvidz:event:{client.zrange('ourvidz:letters:delivered', 0, 0)[0]}")
                <= 86400
            )

    @pytest.mark.parametrize("outcome", [FAILED, typical_outcome()], ids=["failed", "completed"])
    def test_deleting_a_job_deletes_all_its_keys(self, redis_url, image_job, outcome):
        """Only counters and keys shared by all jobs remain."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        ledger.step(claim, progress=1, items=[("preview", {"webp": "x"})])
        folder = f"workspace-temp/user-1/job-1/.attempts/{claim.fence}.a"
        ledger.end(claim, outcome=outcome, emptied_folders=[folder])
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
        ledger.dead_letter(ledger.lease_event("job-1", lease_s=30, token="t"), status=400, error="no")
        ledger.delete("job-1")
        ledger.close()
        assert set(sizes_by_kind(redis_url)) == {
            *("order", "fence", "clock", "counters", "claimed", "call", "ready")
        }

    def test_a_deleted_job_leaves_the_place_of_a_later_one_with_the_same_result(self, redis_url, image_job):
        """`result:*` names the last job of a result, so that an equal job can be answered from it."""
        ledger = Ledger(redis_url)
        for job_id in ("first", "second"):
            ledger.register(image_job(job_id), priority=6)
            claim = ledger.claim(job_id, 1, worker_id="w", lease_s=10, token=job_id)
            ledger.end(claim, outcome=typical_outcome())
            ledger.mark_delivered(ledger.lease_event(job_id, lease_s=30, token="p"), status=200)
            ledger.mark_delivered(ledger.lease_event(job_id, lease_s=30, token="t"), status=200)
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            (name,) = client.scan_iter("ourvidz:result:*")
            ledger.delete("first")
            assert client.get(name) == "second"
            ledger.delete("second")
            assert not client.exists(name)
        ledger.close()

    def test_a_reopened_job_does_not_expire(self, redis_url, image_job):
        """The expiry set at the end of an earlier run is removed."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        ledger.end(ledger.get("job-1"), outcome=FAILED)
        ledger.reopen("job-1", priority=6)
        ledger.close()
        with redis.Redis.from_url(redis_url) as client:
            assert [client.ttl(f"ourvidz:{kind}:job-1") for kind in ("job", "doc", "stream")] == [-1, -1, -1]

    def test_an_expired_record_is_removed_from_the_indexes(self, redis_url, image_job):
        """A record that Redis expired leaves no empty entries in pages."""
        ledger = Ledger(redis_url)
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.delete("ourvidz:job:j1")
            assert [record.job_id for record in ledger.page().records] == ["j2", "j0"]
            assert client.zcard("ourvidz:index:all") == 2
        ledger.close()


def sizes_by_kind(url: str) -> dict[str, int]:
    """Memory in bytes by kind of key."""
    sizes: dict[str, int] = {}
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for name in client.scan_iter():
            kind = name.removeprefix("ourvidz:").split(":")[0]
            sizes[kind] = sizes.get(kind, 0) + client.memory_usage(name, samples=0)
    return sizes


class TestOtherReleases:
    def test_a_record_of_a_newer_schema_version_is_refused(self, redis_url, image_job):
        """During a rolling upgrade an old worker does not run jobs that it cannot read."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:job-1", "v", 99)
            with pytest.raises(NewerRelease, match="version 99"):
                ledger.get("job-1")
            with pytest.raises(NewerRelease, match="job-1 has a record of version 99"):
                ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
            assert client.hget("ourvidz:job:job-1", "status") == b"queued"
        ledger.close()

    def test_a_record_of_a_newer_schema_version_does_not_stop_the_sweep(self, redis_url, image_job):
        """An old process still recovers the jobs that it can read."""
        ledger = Ledger(redis_url)
        ledger.register(image_job("newer"), priority=6)
        ledger.register(image_job("mine"), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:newer", "v", 99)
        assert [record.job_id for record in ledger.queued("sdxl_queue")] == ["mine"]
        ledger.close()

    def test_a_record_of_a_newer_schema_version_is_skipped_by_pages_and_by_the_purge(
        self, redis_url, image_job
    ):
        """An old process lists and purges the other jobs, and deletes nothing that it cannot read."""
        ledger = Ledger(redis_url)
        for job_id in ("newer", "own", "later"):
            ledger.end(ledger.register(image_job(job_id), priority=6).record, outcome=FAILED)
            ledger.mark_delivered(ledger.lease_event(job_id, lease_s=30, token=job_id), status=200)
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:newer", "v", 99)
            assert [record.job_id for record in ledger.page(limit=1).records] == ["later"]
            page = ledger.page()
            assert ([record.job_id for record in page.records], page.cursor) == (["later", "own"], None)
            assert ledger.purge(older_than_s=0) == 2
            assert client.hget("ourvidz:job:newer", "status") == b"failed"
            assert client.zrange("ourvidz:index:all", 0, -1) == [b"newer"]
        ledger.close()

    def test_fields_of_a_newer_release_are_ignored(self, redis_url, image_job):
        """Additional fields are compatible while the schema version is the same."""
        ledger = Ledger(redis_url)
        record = ledger.register(image_job(), priority=6).record
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:job-1", "mood", "sunny")
        assert ledger.get("job-1") == record
        ledger.close()

    def test_two_prefixes_on_one_server_are_independent(self, redis_url, image_job):
        """Staging and production may share a server."""
        one, other = Ledger(redis_url, prefix="one:"), Ledger(redis_url, prefix="other:")
        one.register(image_job(), priority=6)
        assert other.get("job-1") is None
        assert other.page().records == []
        one.close()
        other.close()


def test_timestamps_come_from_the_servers_clock(redis_url, image_job):
    """Leases do not depend on the clocks of the workers' hosts."""
    ledger = Ledger(redis_url)
    before = ledger.now()
    record = ledger.register(image_job(), priority=6).record
    assert before <= record.created_at <= ledger.now()
    ledger.close()
    ledger.close()


def test_a_unix_socket_url_of_the_broker_is_accepted(start_redis, image_job):
    """The embedded server listens on a Unix socket, and the broker and the ledger share one setting."""
    with tempfile.TemporaryDirectory(
        prefix="ledger"
    ) as folder:  # pytest's tmp_path is too long for a socket path
        path = f"{folder}/s"
        server = start_redis("--appendonly", "no", "--unixsocket", path)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "open sesame")
        ledger = Ledger(f"redis+socket://:open%20sesame@{path}?virtual_host=0")
        assert ledger.register(image_job(), priority=6).created
        ledger.close()
