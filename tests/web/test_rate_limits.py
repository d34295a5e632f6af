"""Limits of requests, through the shim: who is refused, with which headers, and who is not."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import requests
from starlette.testclient import TestClient

from ourvidz.errors import SettingsError
from ourvidz.jobs.outcome import Outcome
from ourvidz.settings import load_settings
from ourvidz.web import rate_limits, serve
from tests.web.conftest import OpenShim, Shim, StartChatWorker

KEYS = "edge:k1:jobs+chat,other:k2:jobs+chat,boss:k3:admin"
EDGE, OTHER = {"X-API-Key": "k1"}, {"X-API-Key": "k2"}
HELLO = {"messages": [{"role": "user", "content": "What is a tide?"}]}


def post(shim: Shim, job_id: str, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return shim.client.post("/jobs", json=shim.payload(id=job_id, **fields), headers=headers)


def check_refusal(answer: Any, policy: str) -> None:
    """A problem with the three headers, of which the delay is honest."""
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["code"], document["success"]) == ("RATE_LIMITED", False)
    assert int(answer.headers["retry-after"]) >= 1
    assert f'"{policy}";q=' in answer.headers["ratelimit-policy"]
    assert f'"{policy}";r=' in answer.headers["ratelimit"]


def test_a_user_is_limited_by_estimated_seconds(open_shim: OpenShim) -> None:
    """Two fast images fill a minute; other users are served, and what was submitted stays."""
    shim = open_shim(OURVIDZ_LIMIT_SUBMIT_USER="60/600")
    first = post(shim, "j0")
    assert (first.status_code, first.headers["ratelimit"]) == (
        202,
        '"submit-key";r=35999970;t=1, "submit-user";r=30;t=300',
    )
    assert first.headers["ratelimit-policy"] == '"submit-key";q=36000000;w=3600, "submit-user";q=60;w=600'
    assert post(shim, "j1").status_code == 202
    refused = post(shim, "j2")
    check_refusal(refused, "submit-user")
    assert 290 <= int(refused.headers["retry-after"]) <= 300
    assert post(shim, "j3", user_id="somebody-else").status_code == 202
    assert [post(shim, "j0").status_code for _ in range(5)] == [200] * 5
    assert shim.client.get("/jobs/j2").status_code == 404


def test_a_submission_needs_as_many_round_trips_as_without_limits(
    open_shim: OpenShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are checked by the script that registers."""
    off = dict.fromkeys(("SUBMIT_KEY", "SUBMIT_USER", "READ", "ADDRESS"), "none")
    counts = []
    for rates in (off, {}):
        shim = open_shim(**{f"OURVIDZ_LIMIT_{name}": rate for name, rate in rates.items()})
        post(shim, "warm")
        connection = shim.ledger._connection
        calls = mock.Mock(side_effect=connection.with_retries)
        monkeypatch.setattr(connection, "with_retries", calls)
        assert post(shim, "j0").status_code == 202
        counts.append(calls.call_count)
    assert counts[0] == counts[1] <= 2


def test_two_shims_admit_the_quota_exactly(open_shim: OpenShim) -> None:
    """Parallel posts through both: the allowance is the ledger's."""
    first = open_shim(OURVIDZ_LIMIT_SUBMIT_USER="330/999999")
    second = open_shim(OURVIDZ_LIMIT_SUBMIT_USER="330/999999", ledger=first.ledger)

    def submit(number: int) -> int:
        return int(post((first, second)[number % 2], f"j{number}").status_code)

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(submit, range(40)))
    assert sorted(statuses) == [202] * 11 + [429] * 29
    assert first.ledger.queue_depth("sdxl_queue") == 11


def test_a_push_goes_on_where_a_limit_stopped_it(open_shim: OpenShim) -> None:
    """The error names the first job that was refused; those before it are queued, once."""
    shim = open_shim(OURVIDZ_LIMIT_SUBMIT_USER="60/600")
    jobs = [json.dumps(shim.payload(id=f"j{number}")) for number in range(4)]
    for _ in range(2):
        refused = shim.client.post("/rpush/sdxl_queue", json=jobs)
        check_refusal(refused, "submit-user")
        assert refused.json()["field"] == "[2]"
    assert shim.ledger.queue_depth("sdxl_queue") == 2


def test_a_retry_is_charged(open_shim: OpenShim) -> None:
    """Cancelling and retrying is no way around a limit."""
    shim = open_shim(OURVIDZ_LIMIT_SUBMIT_USER="60/600")
    for job_id in ("j0", "j1"):
        post(shim, job_id)
    shim.client.post("/jobs/j0/cancel")
    check_refusal(shim.client.post("/jobs/j0/retry"), "submit-user")
    assert shim.client.get("/jobs/j0").json()["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/chat", "/enhance", "/v1/chat/completions"])
def test_synchronous_routes_are_limited(open_shim: OpenShim, chat_worker: StartChatWorker, path: str) -> None:
    """They have allowances of their own; an enhancement does not fall back to the original prompt."""
    shim = open_shim(OURVIDZ_LIMIT_SYNC_KEY="4/600")
    chat_worker(shim.ledger)
    body = {**HELLO, "prompt": "a red circle"}
    body = {key: body[key] for key in ("messages" if path != "/enhance" else "prompt",)}
    served = [shim.client.post(path, json=body) for _ in range(3)]
    last = served[-1]
    assert served[0].status_code == 200, served[0].text
    assert '"sync-key";r=' in served[0].headers["ratelimit"]
    assert last.status_code == 429
    assert '"sync-key"' in last.headers["ratelimit"]
    assert int(last.headers["retry-after"]) >= 1
    if path.startswith("/v1"):
        assert last.json()["error"]["type"] == "rate_limit_error"
    assert post(shim, "j0").status_code == 202


def test_reads_are_limited_by_key(open_shim: OpenShim) -> None:
    """Another key is not affected, nor are submissions of the same one."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_LIMIT_READ="3/600")
    answers = [shim.client.get("/jobs", headers=EDGE) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit"] == '"read-key";r=2;t=200'
    check_refusal(answers[-1], "read-key")
    assert shim.client.get("/jobs", headers=OTHER).status_code == 200
    assert post(shim, "j0", EDGE).status_code == 202


def test_operators_have_a_limit_of_their_own(open_shim: OpenShim) -> None:
    """And a rate class multiplies the limits of its keys."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_LIMIT_ADMIN="2/600", OURVIDZ_LIMIT_READ="1/600")
    answers = [shim.client.get("/usage", headers={"X-API-Key": "k3"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    check_refusal(answers[-1], "admin-key")


def test_wrong_keys_are_limited_by_address_and_right_ones_are_not(open_shim: OpenShim) -> None:
    """Callers share the address of an egress proxy: guesses of one must not lock out the others."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_LIMIT_ADDRESS="3/600")
    guesses = [shim.client.get("/jobs", headers={"X-API-Key": f"guess{n}"}) for n in range(5)]
    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429, 429]
    check_refusal(guesses[-1], "wrong-key")
    assert shim.client.get("/status").status_code == 200
    assert shim.client.get("/jobs", headers=EDGE).status_code == 200


def test_open_information_is_limited_by_address_and_probes_are_not(open_shim: OpenShim) -> None:
    """Who probes takes a refusal for death: it would restart the shim, or send callers elsewhere."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_LIMIT_ADDRESS="2/600")
    answers = [shim.client.get("/status") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    check_refusal(answers[-1], "address")
    for path in ("/health", "/health/live"):
        assert [shim.client.get(path).status_code for _ in range(4)] == [200] * 4
    assert shim.client.get("/jobs", headers={"X-API-Key": "guess"}).status_code == 401


def test_open_routes_are_limited_by_address(open_shim: OpenShim, chat_worker: StartChatWorker) -> None:
    """Requests are counted, and their jobs are charged to the address as to one user."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_OPEN_ROUTES="/enhance", OURVIDZ_LIMIT_SYNC_USER="6/600")
    chat_worker(shim.ledger)
    answers = [shim.client.post("/enhance", json={"prompt": "a red circle"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    check_refusal(answers[-1], "sync-address")
    assert shim.client.post("/enhance", json={"prompt": "a circle"}, headers=EDGE).status_code == 200


def test_a_caller_without_a_key_takes_nothing_from_a_user(open_shim: OpenShim) -> None:
    """It may name anybody, and would lock them out."""
    shim = open_shim(
        OURVIDZ_API_KEYS=KEYS,
        OURVIDZ_OPEN_ROUTES="/jobs",
        OURVIDZ_LIMIT_SUBMIT_USER="60/600",
        OURVIDZ_MAX_USER_QUEUED=2,
    )
    assert [post(shim, f"j{number}").status_code for number in range(3)] == [202, 202, 429]
    assert [post(shim, f"k{number}", EDGE).status_code for number in range(3)] == [202, 202, 429]


def test_a_rate_class_multiplies_the_rates_of_its_keys(open_shim: OpenShim) -> None:
    """Rates of users stay."""
    shim = open_shim(OURVIDZ_RATE_CLASSES={"default": 0.5}, OURVIDZ_LIMIT_SUBMIT_KEY="120/600")
    answers = [post(shim, f"j{number}") for number in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert '"submit-key";q=60;w=600, "submit-user";q=144000;w=14400' in answers[0].headers["ratelimit-policy"]


def test_a_reversed_or_unreadable_rate_is_refused_at_start() -> None:
    """One line names the variable."""
    for value in ("0/60", "60", "60/0", "-1/60", "1e3/60", "60/60/60", "all"):
        with pytest.raises(SettingsError, match="OURVIDZ_LIMIT_READ"):
            load_settings(_env_file=None, OURVIDZ_LIMIT_READ=value)
    with pytest.raises(SettingsError, match="OURVIDZ_RATE_CLASSES"):
        load_settings(_env_file=None, OURVIDZ_RATE_CLASSES={"trial": 0})
    with pytest.raises(SettingsError, match="OURVIDZ_TRUSTED_PROXIES"):
        load_settings(_env_file=None, OURVIDZ_TRUSTED_PROXIES="everyone")


def test_an_ipv6_network_is_one_caller(open_shim: OpenShim) -> None:
    """Its holder has 2^64 addresses."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_LIMIT_ADDRESS="2/600")
    statuses = [
        TestClient(shim.client.app, client=(address, 1)).get("/jobs").status_code
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1")
    ]
    assert statuses == [401, 401, 429, 401]


def test_event_streams_are_capped_per_key(open_shim: OpenShim, serve: Any) -> None:
    """A slot is free again when its client leaves."""
    shim = open_shim(OURVIDZ_MAX_STREAMS=1)
    shim.submit()
    url = f"{serve(shim)}/jobs/job-1/events"
    with requests.get(url, stream=True, timeout=10) as first:
        chunks = first.iter_content(1)
        assert next(chunks)
        refused = requests.get(url, timeout=10)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        shim.end("job-1", Outcome(status="completed"))
        assert b"event: done" in b"".join(chunks)
    assert requests.get(url, timeout=10).status_code == 200


def test_the_live_edge_functions_stay_within_the_default_limits(open_shim: OpenShim) -> None:
    """Hundreds of jobs of one user in a burst, under one key: pictures, and the longest clips too."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS)
    for type_name in ("sdxl_image_high", "video7b_high_enhanced"):
        for start in range(0, 400, 100):
            ids = [f"{type_name}-{start + number}" for number in range(100)]
            jobs = [json.dumps(shim.payload(id=job_id, type=type_name)) for job_id in ids]
            answer = shim.client.post("/rpush/sdxl_queue", json=jobs, headers=EDGE)
            assert answer.status_code == 200, answer.text


def test_streams_of_one_caller_leave_connections_for_others(
    open_shim: OpenShim, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the setting says: a process under a low limit of files has few connections."""
    monkeypatch.setattr(rate_limits.open_streams, "most_possible", 1)
    shim = open_shim()
    shim.submit()
    url = f"{serve(shim)}/jobs/job-1/events"
    with requests.get(url, stream=True, timeout=10):
        assert requests.get(url, timeout=10).status_code == 429
        shim.end("job-1", Outcome(status="completed"))


@pytest.mark.parametrize(("proxies", "statuses"), [("", [401, 429]), ("10.0.0.0/8", [401, 401])])
def test_only_trusted_proxies_name_the_address_of_a_caller(
    open_shim: OpenShim, monkeypatch: pytest.MonkeyPatch, proxies: str, statuses: list[int]
) -> None:
    """Anybody can send the header: a new address with each guess would be no limit."""
    variables = {
        "OURVIDZ_API_KEYS": KEYS,
        "OURVIDZ_LIMIT_ADDRESS": "1/600",
        "OURVIDZ_TRUSTED_PROXIES": proxies,
    }
    shim = open_shim(**variables)
    servers: list[serve.Server] = []
    monkeypatch.setattr(serve.Server, "run", lambda server, sockets: servers.append(server))
    monkeypatch.setattr(serve, "create_app", lambda: shim.client.app)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    monkeypatch.setattr(serve.log, "configure", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serve.run(shim.settings, (os.dup(listening.fileno()),))
    config = servers[0].config
    config.load()
    client = TestClient(config.loaded_app, client=("10.0.0.9", 1))
    answers = [
        client.get("/jobs", headers={"X-API-Key": "guess", "X-Forwarded-For": f"198.51.100.{number}"})
        for number in range(2)
    ]
    assert [answer.status_code for answer in answers] == statuses
