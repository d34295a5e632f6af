"""`GET /usage`: GPU-seconds and cost by day and type."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ourvidz.records.gpu_usage import today
from tests.web.conftest import Shim


@pytest.fixture
def used(shim: Shim) -> Shim:
    """A shim after some usage of two users."""
    shim.ledger.add_gpu_usage(
        {
            "ada video_fast ms": 90_000,
            "ada video_fast jobs": 1,
            "ada video_fast cost": 90_000,
            "bob video_fast ms": 30_000,
            "bob sdxl_image_fast ms": 2_500,
            "bob sdxl_image_fast jobs": 2,
        }
    )
    return shim


def test_usage_is_summed_by_day_and_type(used: Shim) -> None:
    """Over all users without `user_id`; the last seven days without dates."""
    report = used.client.get("/usage").json()
    day = today().isoformat()
    assert report["items"] == [
        {"date": day, "type": "sdxl_image_fast", "jobs": 2, "gpu_seconds": 2.5, "cost": 0.0},
        {"date": day, "type": "video_fast", "jobs": 1, "gpu_seconds": 120.0, "cost": 0.09},
    ]
    assert (report["jobs"], report["gpu_seconds"], report["cost"]) == (3, 122.5, 0.09)
    assert report["user_id"] is None


def test_usage_of_one_user(used: Shim) -> None:
    """Who pays is asked by user."""
    report = used.client.get("/usage", params={"user_id": "ada"}).json()
    assert [row["gpu_seconds"] for row in report["items"]] == [90.0]
    assert used.client.get("/usage", params={"user_id": "nobody"}).json()["items"] == []


def test_usage_between_two_days(used: Shim) -> None:
    """Both days included."""
    yesterday = (today() - timedelta(days=1)).isoformat()
    assert used.client.get("/usage", params={"from": yesterday, "to": yesterday}).json()["items"] == []
    days = {"from": yesterday, "to": today().isoformat()}
    assert len(used.client.get("/usage", params=days).json()["items"]) == 2


@pytest.mark.parametrize(
    "days", [{"from": "2026-02-02", "to": "2026-02-01"}, {"from": "2020-01-01"}, {"from": "soon"}]
)
def test_a_wrong_period_is_refused(shim: Shim, days: dict[str, str]) -> None:
    """A request for ten years would read thousands of keys."""
    answer = shim.client.get("/usage", params=days)
    assert answer.status_code == 422
    assert answer.json()["field"] == "from"


def test_the_first_days_of_the_calendar_are_a_period(shim: Shim) -> None:
    """Nothing was used then, and no day comes before."""
    answer = shim.client.get("/usage", params={"to": "0001-01-01"})
    assert (answer.status_code, answer.json()["items"]) == (200, [])


def test_only_administrators_read_usage(open_shim) -> None:
    """It names what other callers do."""
    shim = open_shim(OURVIDZ_API_KEYS="caller:one:jobs admin:two:admin")
    statuses = [
        shim.client.get("/usage", headers={"Authorization": f"Bearer {key}"}).status_code
        for key in ("one", "two")
    ]
    assert statuses == [403, 200]
