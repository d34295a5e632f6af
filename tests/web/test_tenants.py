"""Keys that are bound to users: every route, every state of a key, every tenant; and tokens for browsers."""

from __future__ import annotations

import io
import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import Request
from PIL import Image
from structlog.testing import capture_logs

from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.keys.caller import Caller, UserBinding
from ourvidz.keys.store import KeyStore
from ourvidz.web.auth import BROWSER
from tests.web.conftest import Shim
from tests.web.test_auth import ANY_KEY, OPEN

SETTINGS_KEY = "0perator-of-this-installation"
ANN, BOB = "shop-ann", "bob"
MINE, THEIRS, NOBODYS, ABSENT = "job-ann", "job-bob", "job-nobody", "job-absent"
BOUND = frozenset({"jobs", "chat"})


def image(user: str, name: str = "0.png") -> str:
    """The key of a picture of a user's job."""
    return f"workspace-temp/{user}/{MINE if user == ANN else THEIRS}/{name}"


PER_JOB = [
    ("GET", "/jobs/{}"),
    ("GET", "/job/{}"),
    ("GET", "/jobs/{}/callback"),
    ("POST", "/jobs/{}/cancel"),
    ("POST", "/jobs/{}/retry"),
    ("DELETE", "/jobs/{}"),
    ("GET", "/jobs/{}/events"),
]
PER_FILE = [("GET", "/assets/{}"), ("HEAD", "/assets/{}"), ("DELETE", "/assets/{}")]
SUBMITTING = ["/jobs", "/rpush/sdxl_queue", "/chat", "/chat/unrestricted", "/enhance", "/enhance/legacy",
              "/generate", "/v1/chat/completions"]  # fmt: skip
LISTING = ["/jobs", "/usage", "/inbox"]
CHECKED = {
    *((method, path.replace("{}", "{id}")) for method, path in PER_JOB),
    *((method, "/assets/{bucket}/{key}") for method, _ in PER_FILE),
    *(("POST", path.replace("sdxl_queue", "{queue}")) for path in SUBMITTING),
    *(("GET", path) for path in LISTING),
    *{("POST", "/references"), ("DELETE", "/references/{path}"), ("POST", "/tokens")},
}
"""Routes about jobs, files or users: those of others are hidden from a bound key."""
CLOSED = {
    *(("POST", f"/{path}") for path in ("admin", "queues/{queue}/pause", "queues/{queue}/resume",
      "workers/{id}/drain", "workers/{id}/resume", "memory/load", "memory/unload", "memory/pin",
      "emergency/operation")),
    *(("GET", f"/{path}") for path in ("autoscale/{queue}", "memory/status", "memory/report", "debug/env")),
    ("DELETE", "/users/{id}/data"),
}  # fmt: skip
"""Routes about the whole installation: a bound key has not their scope."""
OF_NOBODY = {
    ("GET", "/llen/{queue}"),
    ("POST", "/prompts/inspect"),
    ("POST", "/test-compel"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
}
"""Routes that show nothing of a user."""


class Tenants:
    """A shim with two tenants, each with a finished job, a picture and a callback, and a job of no user."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.client = shim.client
        self.keys = KeyStore(shim.ledger.connection, cache_s=0)
        for user, job_id in ((ANN, MINE), (BOB, THEIRS)):
            self.submit(id=job_id, user_id=user)
            asset = Asset(type="image", key=image(user))
            shim.store.put(image(user), b"a picture", content_type="image/png")
            shim.end(job_id, Outcome(status="completed", assets=(asset,), metadata={"generation_time": 1.0}))
            self.client.post("/functions/v1/job-callback", json={"job_id": job_id, "status": "completed"})
        self.submit(id=NOBODYS, type="chat_conversation", user_id=None)

    def submit(self, **fields: Any) -> None:
        """Submit a job as the operator."""
        answer = self.client.post("/jobs", json=self.shim.payload(**fields), headers=operator())
        assert answer.status_code == 202, answer.text

    def bound(self, *, user: str | None = None, prefix: str | None = None) -> dict[str, str]:
        """The headers of a key that is bound to one user, or to those with a prefix."""
        name = f"key-{time.monotonic_ns()}"
        return bearer(self.keys.create(name, BOUND, binding=UserBinding(user, prefix))[1])

    def token(self, **fields: Any) -> str:
        """A token that the operator's key makes."""
        answer = self.client.post("/tokens", json=fields, headers=operator())
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store"), answer.text
        return str(answer.json()["token"])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def operator() -> dict[str, str]:
    return bearer(SETTINGS_KEY)


@pytest.fixture
def tenants(open_shim) -> Tenants:
    """A keyed shim with two tenants."""
    keys = f"ops:{SETTINGS_KEY}:jobs+chat+admin"
    return Tenants(open_shim(OURVIDZ_API_KEYS=keys, OURVIDZ_EMBEDDED=True))


@pytest.fixture(params=[{"user": ANN}, {"prefix": "shop-"}], ids=["user", "prefix"])
def anns(tenants: Tenants, request) -> dict[str, str]:
    """The headers of a key that is bound to Ann, by name or by prefix."""
    return tenants.bound(**request.param)


def test_every_route_is_classified(tenants: Tenants) -> None:
    """A new route shows a bound key nothing of others by accident."""
    documented = {
        (method.upper(), path.replace("{key}", "{key}"))
        for path, methods in tenants.client.get("/openapi.json").json()["paths"].items()
        for method in methods
        if path not in OPEN
    }
    assert documented <= CHECKED | CLOSED | OF_NOBODY
    assert {path for _, path in CLOSED} >= ANY_KEY


def test_a_bound_key_gets_the_same_answer_for_what_is_absent_and_what_belongs_to_others(
    tenants: Tenants, anns: dict[str, str]
) -> None:
    """Neither by status nor by text can it tell whether there is such a job or file."""
    for method, path in PER_JOB:
        answers = {}
        for job_id in (THEIRS, NOBODYS, ABSENT):
            answer = tenants.client.request(method, path.format(job_id), headers=anns)
            answers[job_id] = answer.status_code, answer.text.replace(job_id, "JOB")
        assert answers[THEIRS] == answers[NOBODYS] == answers[ABSENT], path
        assert answers[THEIRS][0] == 404, path
    for method, path in PER_FILE:
        answers = {}
        for user in (BOB, "absent"):
            for name in ("0.png", "absent.png"):
                key = image(BOB, name).replace(BOB, user, 1)
                answer = tenants.client.request(method, path.format(key), headers=anns)
                answers[key] = answer.status_code, answer.text.replace(key, "FILE")
        assert {status for status, _ in answers.values()} == {404}, (method, answers)
        assert len({text for _, text in answers.values()}) == 1, (method, answers)
    assert tenants.shim.ledger.get(THEIRS).status == "completed"
    assert tenants.shim.store.exists(image(BOB))


def test_a_bound_key_uses_what_belongs_to_its_users(tenants: Tenants, anns: dict[str, str]) -> None:
    """The same routes with the tenant's own job and file."""
    force = {"force": "true"}  # its callback is not delivered
    expected = {"/cancel": 409, "/retry": 409}
    for method, path in [*PER_JOB[:5], *PER_FILE, *PER_JOB[6:], *PER_JOB[5:6]]:
        name = image(ANN) if "assets" in path else MINE
        answer = tenants.client.request(method, path.format(name), params=force, headers=anns)
        status = next((code for end, code in expected.items() if path.endswith(end)), 200)
        assert answer.status_code == status, (path, answer.text)
    assert tenants.shim.ledger.get(MINE) is None


SPELLINGS = (
    f"workspace-temp/{BOB}/{MINE}/0.png",
    f"workspace-temp//{BOB}/{THEIRS}/0.png",
    f"workspace-temp/{ANN}/../{BOB}/{THEIRS}/0.png",
    f"workspace-temp/{ANN}/%2e%2e/{BOB}/{THEIRS}/0.png",
    f"workspace-temp/{ANN}%2f..%2f{BOB}/{THEIRS}/0.png",
    f"workspace-temp/./{BOB}/{THEIRS}/0.png",
    f"workspace-temp/{ANN}\\..\\{BOB}/{THEIRS}/0.png",
    f"workspace-temp/{ANN.upper()}/{MINE}/0.png",
    f"workspace-temp/{BOB}/{THEIRS}",
    f"workspace-temp/{BOB}",
)


def test_no_spelling_of_a_path_leads_to_files_of_others(tenants: Tenants) -> None:
    """Whoever has a key for one user tries all of them."""
    headers = tenants.bound(user=ANN)
    for path in SPELLINGS:
        assert tenants.client.get(f"/assets/{path}", headers=headers).status_code == 404, path
        assert tenants.client.delete(f"/assets/{path}", headers=headers).status_code in (404, 422), path
    assert tenants.shim.store.exists(image(BOB))


def body_of(path: str, job_id: str | None, user: str | None) -> Any:
    """The body of a submission for a user."""
    if path == "/jobs" or "rpush" in path:
        job = Shim.payload(id=job_id or "new", user_id=user)
        return [json.dumps(job)] if "rpush" in path else job
    message = {"role": "user", "content": "tides"}
    return {"messages": [message], "prompt": "tides", "user_id": user, "max_tokens": 8}


def test_a_bound_key_submits_for_its_users_only(tenants: Tenants, chat_worker) -> None:
    """A job of another user would use that user's references, quota and reputation."""
    one, several = tenants.bound(user=ANN), tenants.bound(prefix="shop-")

    def post(path: str, job_id: str, user: str | None, headers: dict[str, str]) -> int:
        return int(tenants.client.post(path, json=body_of(path, job_id, user), headers=headers).status_code)

    for path in SUBMITTING:
        assert [post(path, "new", user, one) for user in (BOB, "shop-", ANN.upper())] == [403] * 3, path
        assert post(path, "new", BOB, several) == 403, path
        assert post(path, "new", None, several) in (403, 422), path
    assert tenants.shim.ledger.get("new") is None
    chat_worker(tenants.shim.ledger)
    for path in SUBMITTING:
        # A key of one user need not name it.
        for user in (ANN, None):
            assert post(path, f"new-{user}{path[1:2]}", user, one) in (200, 202), path
    jobs = tenants.client.get("/jobs", headers=operator()).json()["items"]
    newest = [job for job in jobs if job["job_id"] not in (MINE, THEIRS, NOBODYS)]
    assert len(newest) == 2 * len(SUBMITTING)
    assert {job["user_id"] for job in newest} == {ANN}


def test_a_bound_key_administers_nothing_by_a_job(tenants: Tenants) -> None:
    """Jobs of that type list workers and flush caches."""
    for headers in (tenants.bound(user=ANN), tenants.bound(prefix="shop-")):
        job = {"id": "a", "type": "admin_utilities", "user_id": ANN, "operation": "status"}
        assert tenants.client.post("/jobs", json=job, headers=headers).status_code == 403
    for method, path in CLOSED:
        concrete = path.replace("{queue}", "sdxl_queue").replace("{id}", "x")
        answer = tenants.client.request(method, concrete, headers=tenants.bound(user=ANN))
        assert answer.status_code == 403, path


def test_lists_of_a_bound_key_have_its_users_only(tenants: Tenants) -> None:
    """A key of one user need not name it, one of several must; a foreign user looks like one without jobs."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    usage = {"ms": 5000, "jobs": 1}
    for user in (ANN, BOB):
        tenants.shim.ledger.add_gpu_usage({f"{user} sdxl_image_fast {name}": n for name, n in usage.items()})
    one, several = tenants.bound(user=ANN), tenants.bound(prefix="shop-")

    def get(path: str, headers: dict[str, str], **params: str) -> Any:
        return tenants.client.get(path, params=params, headers=headers)

    for headers, params in ((one, {}), (one, {"user_id": ANN}), (several, {"user_id": ANN})):
        assert [job["job_id"] for job in get("/jobs", headers, **params).json()["items"]] == [MINE]
        assert get("/usage", headers, **params).json()["gpu_seconds"] == 5.0
    for headers in (one, several):
        for user in (BOB, "absent"):
            assert get("/jobs", headers, user_id=user).json() == {"items": [], "cursor": None}
            assert get("/usage", headers, user_id=user, to=day).status_code == 403
        callbacks = get("/inbox", headers).json()["items"]
        assert [each["payload"]["job_id"] for each in callbacks] == [MINE]
        assert get("/inbox", headers, job_id=THEIRS).json() == get("/inbox", headers, job_id=ABSENT).json()
    for path in ("/jobs", "/usage"):
        assert get(path, several).status_code == 422
    assert get("/usage", operator()).json()["gpu_seconds"] == 10.0


def test_references_of_a_bound_key_are_those_of_its_users(tenants: Tenants, anns: dict[str, str]) -> None:
    """Uploads for others are refused; those of others look like none."""
    png = io.BytesIO()
    Image.new("RGB", (16, 16), "green").save(png, "PNG")

    def upload(user: str, headers: dict[str, str]) -> Any:
        octets = {"Content-Type": "application/octet-stream", **headers}
        return tenants.client.post(
            "/references", content=png.getvalue(), params={"user_id": user}, headers=octets
        )

    assert upload(BOB, anns).status_code == 403
    theirs = upload(BOB, operator()).json()["path"]
    mine = upload(ANN, anns).json()["path"]
    answers = {
        tenants.client.delete(f"/references/{path}", params={"user_id": user}, headers=anns).status_code
        for path in (theirs, theirs.replace("uploads/", "uploads/9"))
        for user in (ANN, BOB)
    }
    assert answers == {404}
    assert tenants.client.get(f"/assets/{theirs}", headers=anns).status_code == 404
    assert tenants.client.get(f"/assets/{theirs}", headers=operator()).status_code == 200
    deleted = tenants.client.delete(f"/references/{mine}", params={"user_id": ANN}, headers=anns)
    assert deleted.status_code == 200


def test_only_a_valid_key_opens_a_route(tenants: Tenants) -> None:
    """Every route, with a key in every state."""
    tenants.client.get("/jobs")  # so that the state of no key is remembered
    ids = {}
    made = {}
    for name in ("valid", "revoked", "expired", "rotated", "ended"):
        ids[name], made[name] = tenants.keys.create(name, BOUND | {"admin", "read"})
    tenants.keys.revoke(ids["revoked"])
    tenants.shim.ledger.connection.client.hset(
        f"{tenants.shim.ledger.connection.prefix}apikey:{ids['expired']}", "expires_at", int(time.time()) - 5
    )
    tenants.keys.rotate(ids["rotated"])
    tenants.keys.rotate(ids["ended"], grace_s=0)
    valid = {"valid", "rotated"}
    for method, path in sorted(CHECKED | CLOSED | OF_NOBODY):
        concrete = path.replace("{id}", ABSENT).replace("{queue}", "none").replace("{model}", "none")
        concrete = concrete.replace("{bucket}/{key}", "workspace-temp/x").replace("{path}", "none")
        for name, key in made.items():
            headers = bearer(key) if method == "GET" else {"X-API-Key": key}
            status = tenants.client.request(method, concrete, json={}, headers=headers).status_code
            assert (status != 401) == (name in valid), (method, path, name, status)
            assert status != 403


def test_a_stored_key_is_checked_by_a_shim_without_keys_too(open_shim) -> None:
    """Whoever sends a key that is revoked, or bound, does not become everybody."""
    shim = open_shim(OURVIDZ_EMBEDDED=True)
    keys = KeyStore(shim.ledger.connection)
    shim.submit(user_id=BOB)
    key_id, key = keys.create("ann", BOUND, binding=UserBinding(ANN))
    assert shim.client.get("/jobs/job-1").status_code == 200
    assert shim.client.get("/jobs/job-1", headers=bearer(key)).status_code == 404
    _, revoked = keys.create("revoked", BOUND)
    keys.revoke(keys.resolve("revoked"))
    assert shim.client.get("/jobs/job-1", headers=bearer(revoked)).status_code == 401
    assert shim.client.get("/jobs/job-1", headers=bearer(keys.rotate(key_id))).status_code == 404


def test_a_shim_that_requires_keys_has_those_that_are_stored(open_shim) -> None:
    """Before the first is created nobody is served; probes are."""
    shim = open_shim(OURVIDZ_REQUIRE_KEYS=True)
    assert (shim.client.get("/jobs").status_code, shim.client.get("/health/live").status_code) == (401, 200)
    _, key = KeyStore(shim.ledger.connection).create("first", BOUND)
    assert shim.client.get("/jobs", headers=bearer(key)).status_code == 200


def reads(tenants: Tenants, token: str, path: str, **headers: str) -> int:
    """The status of reading a path with a token in the query."""
    return tenants.client.get(path, params={"token": token}, headers=headers).status_code


def test_a_token_of_a_job_reads_its_events_and_files(tenants: Tenants) -> None:
    """In the query, as EventSource and <img> send it, or in a header; and nothing else."""
    token = tenants.token(job_id=MINE)
    allowed = [f"/jobs/{MINE}/events", f"/assets/{image(ANN)}"]
    for path in allowed:
        assert reads(tenants, token, path) == 200
        assert tenants.client.get(path, headers=bearer(token)).status_code == 200
    assert reads(tenants, token, f"/jobs/{THEIRS}/events") == reads(tenants, token, f"/jobs/{ABSENT}/events")
    for path in (
        f"/assets/{image(BOB)}",
        f"/assets/workspace-temp/{ANN}/{THEIRS}/0.png",
        f"/jobs/{THEIRS}/events",
    ):
        assert reads(tenants, token, path) == 404
    for method, path in sorted(CHECKED | CLOSED | OF_NOBODY):
        if "events" in path or (method, "assets" in path) in (("GET", True), ("HEAD", True)):
            continue
        concrete = path.replace("{id}", MINE).replace("{bucket}/{key}", image(ANN))
        status = tenants.client.request(method, concrete, params={"token": token}).status_code
        assert status == 403, (method, path)


def test_a_token_of_a_user_reads_what_belongs_to_that_user(tenants: Tenants) -> None:
    """All of its jobs, and none of others."""
    token = tenants.token(user_id=ANN)
    assert [reads(tenants, token, f"/jobs/{job}/events") for job in (MINE, THEIRS, NOBODYS)] == [
        200,
        404,
        404,
    ]
    assert [reads(tenants, token, f"/assets/{image(user)}") for user in (ANN, BOB)] == [200, 404]


def test_a_bound_key_makes_tokens_for_its_users_only(tenants: Tenants, anns: dict[str, str]) -> None:
    """Otherwise a token would be the way around the binding. A token makes no token."""

    def status(headers: dict[str, str], **fields: Any) -> int:
        return int(tenants.client.post("/tokens", json=fields, headers=headers).status_code)

    assert [status(anns, job_id=job) for job in (MINE, THEIRS, NOBODYS, ABSENT)] == [201, 404, 404, 404]
    assert [status(anns, user_id=user) for user in (ANN, BOB)] == [201, 403]
    assert [status(anns, **fields) for fields in ({}, {"job_id": MINE, "user_id": ANN})] == [422, 422]
    assert status(anns, job_id=MINE, expires_in_s=3601) == 422
    assert status(bearer(tenants.token(user_id=ANN)), job_id=MINE) == 403


def test_a_token_has_the_limits_of_its_key(tenants: Tenants) -> None:
    """A key cannot get around them with tokens; the audit log names it."""
    key_id, key = tenants.keys.create("maker", BOUND, rate_class="large")
    token = tenants.client.post("/tokens", json={"user_id": ANN}, headers=bearer(key)).json()["token"]
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "headers": headers, "query_string": b""})
    caller = tenants.client.app.state.keyring.identify(request)
    expected = Caller("token of maker", key_id, frozenset({BROWSER}), "large", UserBinding(ANN))
    assert caller == expected


def test_a_token_ends_with_its_key(tenants: Tenants) -> None:
    """A key that leaked has made tokens, too."""
    key_id, key = tenants.keys.create("maker", BOUND)
    token = tenants.client.post("/tokens", json={"job_id": MINE}, headers=bearer(key)).json()["token"]
    assert reads(tenants, token, f"/assets/{image(ANN)}") == 200
    tenants.keys.revoke(key_id)
    revoked_at = time.monotonic()
    while True:
        asked_at = time.monotonic()
        if reads(tenants, token, f"/assets/{image(ANN)}") == 401:
            break
        assert asked_at < revoked_at + 1.0


def test_callbacks_of_an_earlier_job_under_the_same_id_stay_hidden(tenants: Tenants) -> None:
    """Ids are chosen by callers: whoever knows one of a deleted job could read what came of it."""
    headers = tenants.bound(user=ANN)
    assert tenants.client.delete(f"/jobs/{THEIRS}", params={"force": "true"}, headers=operator()).is_success
    assert tenants.client.post("/jobs", json=Shim.payload(id=THEIRS, user_id=ANN), headers=headers).is_success
    assert tenants.client.get("/inbox", params={"job_id": THEIRS}, headers=headers).json() == {"items": []}
    tenants.client.post("/functions/v1/job-callback", json={"job_id": THEIRS, "status": "processing"})
    assert len(tenants.client.get("/inbox", params={"job_id": THEIRS}, headers=headers).json()["items"]) == 1
    assert tenants.client.get(f"/assets/{image(BOB)}", headers=headers).status_code == 404


NO_TOKENS = (
    "ovt_\u2603",
    "ovt_\u00e9.x",
    "ovt_" + "." * 99,
    "ovt_\0",
    "ovt_\ud800",
    "ovz_" + "a" * 54,
    "x" * 9999,
)


def test_nothing_in_place_of_a_token_is_an_error_of_the_server(tenants: Tenants) -> None:
    """Neither in the query nor in a header."""
    for token in NO_TOKENS:
        raw = token.encode("utf-8", "surrogatepass")
        query = f"token={quote(raw)}"
        assert tenants.client.get(f"/jobs/{MINE}/events?{query}").status_code == 401
        assert tenants.client.get(f"/jobs?{query}", headers=operator()).status_code == 200
        for name, value in (("Authorization", b"Bearer "), ("X-API-Key", b"")):
            assert tenants.client.get("/jobs", headers={name: value + raw}).status_code == 401


def test_no_token_and_no_key_is_logged(tenants: Tenants) -> None:
    """The audit log has names; a path without its query."""
    token = tenants.token(job_id=MINE)
    _, key = tenants.keys.create("logged", BOUND)
    answers = []
    with capture_logs() as logs:
        for path in (f"/assets/{image(BOB)}", f"/jobs/{ABSENT}/events", "/jobs", "/jobs/", "/nothing"):
            answers += [
                tenants.client.get(path, params={"token": token}),
                tenants.client.post(path, headers=bearer(key), params={"token": f"{token}x"}, json={}),
                tenants.client.post(path, headers=bearer(f"{key}x"), json={}),
            ]
    logged = f"{logs} {[answer.text for answer in answers]}"
    assert "audit" in logged
    assert not [secret for secret in (token, key, token[4:40]) if secret in logged]
