"""The Redis store: outages, lost replies, memory use and records of other releases."""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff

from ourvidz.errors import InternalError, OutOfMemory, WorkerUnavailable
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.record import Verdict
from ourvidz.ledger.store import Ledger

FAILED = Outcome.failure(OutOfMemory("there was not enough memory"))


def typical_outcome() -> Outcome:
    """What an SDXL job with three pictures commits."""
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


class Wire:
    """A TCP proxy that counts what the client sends, and can lose the reply to the next script call."""

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
            threading.Thread(target=self._send, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._answer, args=(client, server, cut), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        while request := _received(client):
            self.requests.append(request)
            if self.lose_next.is_set() and b"EVALSHA" in request:
                self.lose_next.clear()
                cut.set()
            server.sendall(request)
        server.close()

    def _answer(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
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
def wire(redis_url: str) -> Iterator[Wire]:
    """A proxy in front of the test server."""
    proxy = Wire(int(redis_url.rsplit(":", 1)[1].split("/")[0]))
    yield proxy
    proxy.close()


@pytest.fixture
def far(wire: Wire, image_job: Callable[..., object]) -> Iterator[Ledger]:
    """A ledger behind the proxy, its scripts loaded and its connections open."""
    ledger = Ledger(f"redis://127.0.0.1:{wire.port}/0")
    for n in range(2):
        warm_up(ledger, image_job(f"warm-{n}"))
    yield ledger
    ledger.close()


def warm_up(ledger: Ledger, job: object) -> None:
    """Run every verb once, so that the server has every script."""
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
            ledger.rescue(job.id, fence=claim.fence)
        else:
            ledger.end(job.id, run=1, fence=claim.fence, outcome=FAILED)
    for n in range(3):
        ledger.postpone(
            ledger.lease_event(job.id, lease_s=30, token=f"p{n}"), due_in_s=0, status=None, error="x"
        )
        ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token=f"t{n}"), status=200)
    ledger.dead_letter(ledger.lease_event(job.id, lease_s=30, token="b"), status=400, error="x")
    ledger.replay(ledger.list_events("dead")[0].event_id)
    ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token="r"), status=200)
    ledger.reopen(job.id, priority=6)
    ledger.end(job.id, run=2, fence=ledger.get(job.id).fence, outcome=FAILED)
    ledger.mark_delivered(ledger.lease_event(job.id, lease_s=30, token="z"), status=200)
    ledger.delete(job.id)
    ledger.record_sweep()


class TestRoundTrips:
    def test_the_hot_verbs_are_one_round_trip_each(self, far, wire, image_job):
        """A metered server far away answers as often as it is asked."""
        far.register(image_job(), priority=6)

        def trips(verb: Callable[[], object]) -> int:
            before = len(wire.requests)
            verb()
            return len(wire.requests) - before

        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        assert claim is not None
        spent = {
            "claim": trips(lambda: far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")),
            "step": trips(lambda: far.step(claim, progress=3, items=[("token", {"text": "x"})])),
            "renew": trips(lambda: far.renew(claim, lease_s=10)),
            "end": trips(lambda: far.end("job-1", run=1, fence=claim.fence, outcome=typical_outcome())),
            "get": trips(lambda: far.get("job-1")),
            "take": trips(lambda: far.lease_event("job-1", lease_s=30, token="t")),
            "delivered": trips(
                lambda: far.mark_delivered(far.lease_event("job-1", lease_s=30, token="t"), status=200)
            )
            - 1,
        }
        assert spent == dict.fromkeys(spent, 1)


class TestLostReplies:
    """The connection breaks after the server has done its work: the same call is sent again."""

    def test_a_registration_still_created_the_job(self, far, wire, image_job):
        """The repeated call reports `created`, so the job is published."""
        wire.lose_next.set()
        assert far.register(image_job(), priority=6).created
        assert not wire.lose_next.is_set()
        assert not far.register(image_job(), priority=6).created
        assert far.queue_depth("sdxl_queue") == 1

    def test_a_claim_is_still_won_once(self, far, wire, image_job):
        """Else the job would sit under a lease that nobody knows of."""
        far.register(image_job(), priority=6)
        wire.lose_next.set()
        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        assert (claim.record.attempt, claim.fence) == (1, 1)
        assert len(far.list_events("pending")) == 1

    def test_a_step_writes_its_items_once(self, far, wire, image_job):
        """A repeated call does not append its tokens again."""
        far.register(image_job(), priority=6)
        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        wire.lose_next.set()
        assert far.step(claim, progress=5, items=[("token", {"text": "x"})]) is Verdict.CONTINUE
        assert [item.kind for item in far.stream("job-1")] == ["state", "state", "token", "progress"]

    def test_an_end_is_committed_once(self, far, wire, image_job):
        """One terminal event, and the worker hears that it won."""
        far.register(image_job(), priority=6)
        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        wire.lose_next.set()
        assert far.end("job-1", run=1, fence=claim.fence, outcome=typical_outcome())
        assert [event.kind for event in far.list_events("pending")].count("completed") == 1

    def test_a_release_and_a_loss_succeed_once(self, far, wire, image_job):
        """The failure counts once, and whoever released hears that it did."""
        far.register(image_job(), priority=6)
        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        wire.lose_next.set()
        assert far.release(claim, code="OOM_ERROR", due_in_s=0)
        claim = far.claim("job-1", 1, worker_id="w", lease_s=10, token="b")
        wire.lose_next.set()
        assert far.rescue("job-1", fence=claim.fence)
        assert far.get("job-1").failures == {"OOM_ERROR": 1, "WORKER_LOST": 1}

    def test_a_taken_row_is_delivered_and_postponed_once(self, far, wire, image_job):
        """Deliveries are counted, and so are retries."""
        far.register(image_job(), priority=6)
        far.end("job-1", run=1, fence=0, outcome=FAILED)
        wire.lose_next.set()
        event = far.lease_event("job-1", lease_s=30, token="t")
        assert event.deliveries == 1
        before = far.counters()
        wire.lose_next.set()
        far.postpone(event, due_in_s=0, status=500, error="down")
        event = far.lease_event("job-1", lease_s=30, token="t2")
        wire.lose_next.set()
        far.mark_delivered(event, status=200)
        after = far.counters()
        for name in ("callbacks.retried", "callbacks.delivered"):
            assert after[name] == before[name] + 1

    def test_a_repeated_operator_call_is_no_conflict(self, far, wire, image_job):
        """Retry and delete answer what they did."""
        far.register(image_job(), priority=6)
        far.end("job-1", run=1, fence=0, outcome=FAILED)
        wire.lose_next.set()
        assert far.reopen("job-1", priority=6).run == 2
        wire.lose_next.set()
        assert far.raise_priority("job-1", run=2, priority=3)
        far.end("job-1", run=2, fence=0, outcome=FAILED)
        for token in ("a", "b"):
            far.mark_delivered(far.lease_event("job-1", lease_s=30, token=token), status=200)
        wire.lose_next.set()
        assert far.delete("job-1").run == 2
        assert far.get("job-1") is None

    def test_a_sweep_still_sees_the_gap(self, far, wire):
        """Else it would not re-arm the leases after an outage."""
        far.record_sweep()
        time.sleep(0.2)
        wire.lose_next.set()
        assert far.record_sweep() >= 0.2


@pytest.mark.system
class TestOutages:
    def test_a_server_that_restarts_is_ridden_out(self, start_redis, image_job):
        """What was acknowledged is there again, and the call in between succeeds."""
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

    def test_a_server_that_takes_no_writes_for_a_while_is_ridden_out(self, start_redis, image_job):
        """A failover, a full disk, a quota: refusals that pass are outages, not mistakes."""
        server = start_redis("--appendonly", "no", "--min-replicas-to-write", "1")
        ledger = Ledger(server.url)
        assert gives_up_in_s(ledger.record_sweep) > 1.0
        with redis.Redis.from_url(server.url) as client:
            allow = threading.Timer(1.0, client.config_set, ("min-replicas-to-write", 0))
            allow.start()
            assert ledger.register(image_job(), priority=6).created
            allow.join()
        ledger.close()

    def test_a_server_that_hangs_is_given_up_in_bounded_time(self, start_redis):
        """A shim's threads must not all wait for it for the better part of a minute."""
        server = start_redis("--appendonly", "no")
        ledger = Ledger(server.url)
        ledger.ping()
        server.signal(signal.SIGSTOP)
        assert gives_up_in_s(lambda: ledger.get("job-1")) < 14
        server.signal(signal.SIGCONT)
        assert ledger.get("job-1") is None
        ledger.close()

    def test_a_step_gives_up_within_two_seconds(self, start_redis, image_job):
        """The job goes on computing while the server is away, dead or frozen."""
        server = start_redis("--appendonly", "no")
        ledger = Ledger(server.url)
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        ledger.step(claim, progress=1)
        server.signal(signal.SIGSTOP)
        assert gives_up_in_s(lambda: ledger.step(claim, progress=2)) < 2.5
        server.signal(signal.SIGCONT)
        assert ledger.step(claim, progress=3) is Verdict.CONTINUE
        server.kill()
        assert gives_up_in_s(lambda: ledger.step(claim, progress=4)) < 2.5
        assert gives_up_in_s(ledger.ping) < 2.5
        ledger.close()

    def test_an_outage_that_lasts_has_a_readable_message(self, monkeypatch):
        """The submission is rejected with 503."""
        monkeypatch.setattr("ourvidz.ledger.connection.PATIENT_RETRIES", (NoBackoff(), 1))
        ledger = Ledger("redis://127.0.0.1:1/0")
        with pytest.raises(WorkerUnavailable, match="the job store cannot be reached"):
            ledger.get("job-1")
        with pytest.raises(WorkerUnavailable, match="the job store cannot be reached"):
            asyncio.run(anext(ledger.follow("job-1")))

    def test_a_follower_rides_out_a_restart(self, start_redis, image_job):
        """An open page goes on when the server is back."""
        server = start_redis("--appendonly", "yes", "--appendfsync", "always")
        ledger = Ledger(server.url)
        ledger.register(image_job(), priority=6)

        async def scene() -> list[str]:
            following = ledger.follow("job-1")
            kinds = [(await anext(following)).kind]
            server.kill()
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(ledger.end, "job-1", run=1, fence=0, outcome=FAILED)
            return kinds + [item.kind async for item in following]

        assert asyncio.run(asyncio.wait_for(scene(), 20)) == ["state", "done"]
        ledger.close()

    def test_a_full_store_is_unavailable_too(self, start_redis, image_job):
        """A job that cannot be written down must not be taken on."""
        server = start_redis("--appendonly", "no", "--maxmemory-policy", "noeviction")
        ledger = Ledger(server.url)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1mb")
        with pytest.raises(WorkerUnavailable, match="takes no writes"):
            ledger.register(image_job(), priority=6)
        ledger.close()


def gives_up_in_s(verb: Callable[[], object]) -> float:
    """How long a call takes to say that the server is away."""
    start = time.monotonic()
    with pytest.raises(WorkerUnavailable):
        verb()
    return time.monotonic() - start


class TestMemory:
    def test_a_finished_image_job_takes_less_than_8_kib(self, redis_url, image_job):
        """A million finished jobs must fit a server of ordinary size."""
        ledger = Ledger(redis_url)
        job_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
        prompt = (
            "a lighthouse on a cliff above a calm sea at dawn, seagulls, soft light, detailed clouds, " * 2
        )
        job = image_job(job_id, user_id="6f9619ff-8b86-d011-b42d-00c04fc964ff", prompt=prompt, num_images=3)
        ledger.register(job, priority=6)
        ledger.mark_published(job_id, 1)
        claim = ledger.claim(job_id, 1, worker_id="sdxl@host-gpu0", lease_s=10, token="a")
        for n in range(25):
            ledger.step(claim, progress=4.0 * n, stage="denoising")
        ledger.end(job_id, run=1, fence=claim.fence, outcome=typical_outcome(), worker_id="sdxl@host-gpu0")
        for token in ("p", "t"):
            ledger.mark_delivered(ledger.lease_event(job_id, lease_s=30, token=token), status=200)
        sizes = sizes_by_kind(redis_url)
        ledger.close()
        lasting = {kind: size for kind, size in sizes.items() if kind not in ("event", "stream", "call")}
        assert {"job", "doc"} <= set(lasting)
        assert sum(lasting.values()) < 8 * 1024, lasting
        assert sizes["event"] + sizes["stream"] < 8 * 1024, sizes
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            for kind, longest_s in (("job", 8 * 86400), ("doc", 8 * 86400), ("stream", 3600), ("call", 120)):
                for name in client.scan_iter(f"ourvidz:{kind}:*"):
                    assert 0 < client.ttl(name) <= longest_s
            assert (
                0
                < client.ttl(f"ourvidz:event:{client.zrange('ourvidz:letters:delivered', 0, 0)[0]}")
                <= 86400
            )

    def test_a_deleted_job_leaves_no_key_of_its_own(self, redis_url, image_job):
        """Only counters and what concerns all jobs stay."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        claim = ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
        ledger.step(claim, progress=1, items=[("preview", {"webp": "x"})])
        ledger.end("job-1", run=1, fence=claim.fence, outcome=FAILED)
        ledger.mark_delivered(ledger.lease_event("job-1", lease_s=30, token="p"), status=200)
        ledger.dead_letter(ledger.lease_event("job-1", lease_s=30, token="t"), status=400, error="no")
        ledger.delete("job-1")
        ledger.close()
        assert set(sizes_by_kind(redis_url)) == {"order", "counters", "claimed", "call"}

    def test_a_reopened_job_does_not_expire(self, redis_url, image_job):
        """The end of an earlier run must not take the later one away."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        ledger.end("job-1", run=1, fence=0, outcome=FAILED)
        ledger.reopen("job-1", priority=6)
        ledger.close()
        with redis.Redis.from_url(redis_url) as client:
            assert [client.ttl(f"ourvidz:{kind}:job-1") for kind in ("job", "doc", "stream")] == [-1, -1, -1]

    def test_a_record_that_expired_by_itself_leaves_the_lists_by_itself(self, redis_url, image_job):
        """The safety net leaves no holes in a page."""
        ledger = Ledger(redis_url)
        for n in range(3):
            ledger.register(image_job(f"j{n}"), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.delete("ourvidz:job:j1")
            assert [record.job_id for record in ledger.page().records] == ["j2", "j0"]
            assert client.zcard("ourvidz:index:all") == 2
        ledger.close()


def sizes_by_kind(url: str) -> dict[str, int]:
    """What every kind of key takes, in bytes."""
    sizes: dict[str, int] = {}
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for name in client.scan_iter():
            kind = name.removeprefix("ourvidz:").split(":")[0]
            sizes[kind] = sizes.get(kind, 0) + client.memory_usage(name, samples=0)
    return sizes


class TestOtherReleases:
    def test_a_record_of_a_newer_release_is_refused_not_misread(self, redis_url, image_job):
        """During a rolling upgrade an old worker must leave such a job alone."""
        ledger = Ledger(redis_url)
        ledger.register(image_job(), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:job-1", "v", 99)
            with pytest.raises(InternalError, match="version 99"):
                ledger.get("job-1")
            with pytest.raises(InternalError, match="job-1 has a record of version 99"):
                ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="a")
            assert client.hget("ourvidz:job:job-1", "status") == b"queued"
        ledger.close()

    def test_a_record_of_a_newer_release_stops_no_sweep(self, redis_url, image_job):
        """One job of a newer process must not keep an older one from looking after the rest."""
        ledger = Ledger(redis_url)
        ledger.register(image_job("newer"), priority=6)
        ledger.register(image_job("mine"), priority=6)
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:newer", "v", 99)
        assert [record.job_id for record in ledger.queued("sdxl_queue")] == ["mine"]
        ledger.close()

    def test_fields_of_a_newer_release_are_ignored(self, redis_url, image_job):
        """As long as the version says that the rest means the same."""
        ledger = Ledger(redis_url)
        record = ledger.register(image_job(), priority=6).record
        with redis.Redis.from_url(redis_url) as client:
            client.hset("ourvidz:job:job-1", "mood", "sunny")
        assert ledger.get("job-1") == record
        ledger.close()

    def test_two_prefixes_on_one_server_know_nothing_of_each_other(self, redis_url, image_job):
        """Staging and production may share a server."""
        one, other = Ledger(redis_url, prefix="one:"), Ledger(redis_url, prefix="other:")
        one.register(image_job(), priority=6)
        assert other.get("job-1") is None
        assert other.page().records == []
        one.close()
        other.close()


def test_time_is_the_servers_own(redis_url, image_job):
    """Workers on hosts with wrong clocks agree on leases."""
    ledger = Ledger(redis_url)
    before = ledger.now()
    record = ledger.register(image_job(), priority=6).record
    assert before <= record.created_at <= ledger.now()
    ledger.close()
    ledger.close()


def test_a_unix_socket_in_the_brokers_spelling_works(start_redis, image_job):
    """The embedded server listens on a socket, and broker and ledger share one setting."""
    with tempfile.TemporaryDirectory(prefix="ledger") as folder:  # pytest's own are too long for a socket
        path = f"{folder}/s"
        server = start_redis("--appendonly", "no", "--unixsocket", path)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "open sesame")
        ledger = Ledger(f"redis+socket://:open%20sesame@{path}?virtual_host=0")
        assert ledger.register(image_job(), priority=6).created
        ledger.close()
