"""The embedded mode: the callback receiver and its inbox."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ourvidz.callbacks import signing
from ourvidz.callbacks.inbox import Inbox

SECRETS = {"callback_secrets": ("one",), "webhook_secrets": ("whsec_b3VydmlkemVhZ2VydGVzdHNlY3JldA==",)}
CALLBACK = {
    "job_id": "job-1",
    "status": "completed",
    "assets": [{"type": "image", "url": "x"}],
    "metadata": {"job_type": "sdxl_image_high"},
}


def signed(body: bytes, **secrets: Any) -> dict[str, str]:
    return signing.signed_headers(body, event_id="msg_1", at=datetime.now(UTC), **(SECRETS | secrets))


@pytest.fixture
def secured(open_shim):
    """A shim whose receiver expects both signatures and a service key."""
    return open_shim(
        OURVIDZ_EMBEDDED=True,
        JOB_CALLBACK_SECRET="one",
        OURVIDZ_WEBHOOK_SECRET=SECRETS["webhook_secrets"][0],
        SUPABASE_SERVICE_KEY="service",
        OURVIDZ_API_KEYS="a:b:jobs",
    )


def post(shim, callback: Any = CALLBACK, **secrets: Any):
    body = json.dumps(callback).encode()
    headers = signed(body, **({"service_key": "service"} | secrets))
    return shim.client.post("/functions/v1/job-callback", content=body, headers=headers)


def test_a_signed_callback_is_stored(secured) -> None:
    """The receiver needs no API key: the signatures prove the sender."""
    answer = post(secured)
    assert answer.status_code == 200
    receipt = answer.json()
    assert receipt["success"] is True
    assert receipt["debug"].pop("processingTimestamp")
    assert receipt["debug"] == {
        "job_id": "job-1", "jobStatus": "completed", "jobType": "sdxl_image_high", "format": "image",
        "quality": "high", "isSDXL": True, "isEnhanced": False, "assetsProcessed": 1,
    }  # fmt: skip
    (item,) = secured.client.get("/inbox", headers={"X-API-Key": "b"}).json()["items"]
    assert item["payload"] == CALLBACK
    assert item["verified"] is True
    assert item["headers"]["webhook-id"] == "msg_1"


def test_a_secret_key_proves_the_sender_as_apikey(open_shim) -> None:
    """The worker sends it nowhere else."""
    shim = open_shim(OURVIDZ_EMBEDDED=True, SUPABASE_SERVICE_KEY="sb_secret_x")
    body = json.dumps(CALLBACK).encode()
    as_bearer = {"Authorization": "Bearer sb_secret_x"}
    statuses = [
        shim.client.post("/functions/v1/job-callback", content=body, headers=headers).status_code
        for headers in ({"apikey": "sb_secret_x"}, as_bearer, {"apikey": "x"}, {})
    ]
    assert statuses == [200, 401, 401, 401]
    assert "sb_secret_x" not in shim.client.get("/inbox").text


def test_the_inbox_contains_no_secrets(secured) -> None:
    """Secret headers of a delivery are redacted."""
    post(secured)
    assert "service" not in secured.client.get("/inbox", headers={"X-API-Key": "b"}).text


@pytest.mark.parametrize(
    "secrets",
    [
        {"callback_secrets": ("wrong",)},
        {"callback_secrets": ()},
        {"webhook_secrets": ()},
        {"service_key": "wrong"},
        {"service_key": None},
    ],
)
def test_a_callback_without_every_configured_proof_is_refused(secured, secrets: dict[str, Any]) -> None:
    """The route is open to everybody."""
    answer = post(secured, **secrets)
    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")
    assert secured.client.get("/inbox", headers={"X-API-Key": "b"}).json() == {"items": []}


def test_a_replayed_callback_is_stored_once(secured) -> None:
    """What was recorded on the way, and sent again, is answered alike; with an old time it is refused."""
    body = json.dumps(CALLBACK).encode()
    headers = signed(body, service_key="service")
    old = signing.signed_headers(
        body, event_id="msg_2", at=datetime.now(UTC) - timedelta(minutes=6), service_key="service", **SECRETS
    )
    answers = [
        secured.client.post("/functions/v1/job-callback", content=body, headers=each).status_code
        for each in (headers, headers, old)
    ]
    assert answers == [200, 200, 401]
    assert len(secured.client.get("/inbox", headers={"X-API-Key": "b"}).json()["items"]) == 1


def test_an_inbox_of_an_earlier_release_is_read_on(tmp_path) -> None:
    """Its table has no ids of webhooks."""
    path = tmp_path / "inbox.sqlite3"
    before = sqlite3.connect(path)
    before.execute(
        "CREATE TABLE deliveries (id INTEGER PRIMARY KEY AUTOINCREMENT, received_at TEXT NOT NULL, job_id"
        " TEXT NOT NULL, headers TEXT NOT NULL, payload TEXT NOT NULL, verified INTEGER NOT NULL) STRICT"
    )
    before.execute(
        "INSERT INTO deliveries (received_at, job_id, headers, payload, verified)"
        """ VALUES ('2026-01-01T00:00:00Z', 'job-0', '{}', '{"job_id": "job-0"}', 1)"""
    )
    before.commit()
    before.close()
    for _ in range(2):
        inbox = Inbox(path)
        inbox.add({"job_id": "job-1"}, {}, received_at="2026-01-01T00:00:00Z", verified=True, webhook_id="m")
        assert [row["payload"]["job_id"] for row in inbox.last(limit=9)] == ["job-0", "job-1"]
        inbox.close()


def test_every_delivery_is_stored_in_order(shim) -> None:
    """Without a secret repeated ones too: anybody could use the id of another."""
    for status in ("processing", "completed", "completed"):
        post(shim, CALLBACK | {"status": status})
    post(shim, CALLBACK | {"job_id": "job-2"})
    items = shim.client.get("/inbox", params={"job_id": "job-1"}).json()["items"]
    assert [item["payload"]["status"] for item in items] == ["processing", "completed", "completed"]
    assert all(item["verified"] is False for item in items)
    last = shim.client.get("/inbox", params={"limit": 2}).json()["items"]
    assert [item["payload"]["job_id"] for item in last] == ["job-1", "job-2"]


@pytest.mark.parametrize("callback", [[], {}, {"job_id": 1}, {"job_id": "../x"}, "x"])
def test_a_callback_that_names_no_job_is_refused(shim, callback: Any) -> None:
    """A delivery without a job id belongs to no job."""
    assert post(shim, callback).status_code == 422


def test_a_callback_with_a_job_id_and_odd_fields_is_stored(shim) -> None:
    """The receiver checks signatures, not contents."""
    odd = {"job_id": "job-1", "status": 4, "assets": None, "metadata": [1]}
    assert post(shim, odd).json()["debug"]["jobType"] is None
    assert shim.client.get("/inbox").json()["items"][0]["payload"] == odd


def test_the_inbox_survives_a_restart_and_stays_bounded(tmp_path) -> None:
    """Deliveries outlive the process; the oldest are deleted."""
    path = tmp_path / "inbox.sqlite3"
    for number in range(7):
        inbox = Inbox(path, max_deliveries=5)
        inbox.add({"job_id": f"job-{number}"}, {}, received_at="2026-01-01T00:00:00+00:00", verified=False)
        inbox.close()
    inbox = Inbox(path, max_deliveries=5)
    assert [each["payload"]["job_id"] for each in inbox.last(limit=10)] == [f"job-{n}" for n in range(2, 7)]
    inbox.close()


def test_only_an_embedded_shim_has_these_routes(open_shim) -> None:
    """In production the backend has them."""
    shim = open_shim()
    assert shim.client.get("/inbox").status_code == 404
    assert shim.client.post("/functions/v1/job-callback", json=CALLBACK).status_code == 404
