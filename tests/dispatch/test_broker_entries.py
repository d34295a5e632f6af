"""Messages that a ledger script writes into the broker's lists, in place of Celery's own connection."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.celery_settings import JOBS, PRIORITY_SYNC
from ourvidz.dispatch.broker_entries import encode, is_broker
from ourvidz.dispatch.messages import broker_entry
from tests.dispatch.conftest import Install, Installation
from tests.factories import image_job, publishing_to, video_job
from tests.monitor import monitored


def without_tag(message: str | bytes) -> dict[str, Any]:
    """A message without what is drawn at random for each, and without the thread that nobody answers."""
    parsed: dict[str, Any] = json.loads(message)
    assert len(parsed["properties"].pop("reply_to")) == 36
    assert len(parsed["properties"].pop("delivery_tag")) == 36
    return parsed


@pytest.mark.parametrize("priority", [PRIORITY_SYNC, 3, 4, JOBS, 9])
def test_an_entry_is_what_celery_would_publish(installation: Installation, priority: int) -> None:
    """Workers of every release, and Flower, read both alike."""
    record = installation.ledger.register(image_job("job-1"), priority=priority).record
    entry = broker_entry(image_job("job-1"), priority=priority)
    assert entry is not None
    assert dispatch.publish(record)
    assert installation.broker.llen(entry.list_name) == 1
    (published,) = installation.broker.lrange(entry.list_name, 0, -1)
    assert without_tag(published) == without_tag(entry.message)


def test_an_entry_does_not_depend_on_what_the_process_has_imported(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery takes options of a registered task from the task."""
    registered = importlib.import_module("ourvidz.tasks.sdxl").generate
    with_task = encode(dispatch.messages._generation("job-1", 1, "sdxl_image_fast", JOBS))
    monkeypatch.delitem(celery_app.tasks, registered.name)
    without = encode(dispatch.messages._generation("job-1", 1, "sdxl_image_fast", JOBS))
    assert without_tag(with_task.message) == without_tag(without.message)


def test_an_entry_belongs_to_its_job_and_to_the_settings(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries of one type are made of one template; the first job's may be used for none but that."""
    tags = set()
    for job in (image_job("job-1"), image_job("job-2")):
        entry = broker_entry(job, priority=JOBS)
        assert entry
        assert dispatch.publish(installation.ledger.register(job, priority=JOBS).record)
        (published,) = installation.broker.lrange(entry.list_name, 0, 0)
        assert without_tag(published) == without_tag(entry.message)
        tags.add(json.loads(entry.message)["properties"]["delivery_tag"])
    assert len(tags) == 2
    longer = {"sdxl_image_fast": 1234.0}
    monkeypatch.setattr(dispatch.messages, "time_limit_s", lambda name: longer.get(name, 1.0))
    changed = broker_entry(image_job("job-3"), priority=JOBS)
    assert changed
    load_s = installation.app.settings.model_load_s
    assert json.loads(changed.message)["headers"]["timelimit"] == [1.5 * 1234.0 + load_s, None]


def test_a_submission_is_one_call_to_the_server(installation: Installation, redis_url: str) -> None:
    """The caller waits for it. Checks of capacity and workers are kept for a second."""
    dispatch.submit(image_job("earlier"), require_worker=False)
    with monitored(redis_url) as seen:
        admission = dispatch.submit(image_job("job-1"), require_worker=False)
    assert seen.commands == ["register"]
    assert (admission.created, admission.position, admission.record.publishes) == (True, 1, 1)
    assert admission.record.published_at == admission.record.queued_at
    assert [each["headers"]["id"] for each in installation.messages("sdxl_queue")] == ["job-1", "earlier"]


def test_a_repeated_submission_publishes_nothing(installation: Installation) -> None:
    """Its message is on its way already."""
    for _ in range(2):
        dispatch.submit(image_job("job-1"), require_worker=False)
    assert len(installation.messages("sdxl_queue")) == 1


def test_an_enhanced_job_is_published_as_celery_does(installation: Installation) -> None:
    """Whether its chain begins with a message to a chat worker depends on the workers."""
    job = video_job("clip", enhance_prompt=True)
    assert broker_entry(job, priority=JOBS) is None
    dispatch.submit(job, require_worker=False)
    assert len(installation.messages("wan_queue")) == 1


def test_a_broker_elsewhere_is_published_to_as_celery_does(install: Install, redis_url: str) -> None:
    """A script reaches the lists of its own database only."""
    install()
    with publishing_to(redis_url.replace("/0", "/2")):
        assert not is_broker(redis_url)
        assert broker_entry(image_job("job-1"), priority=JOBS) is None
    with publishing_to("sentinel://a:26379/0;sentinel://b:26379/0"):
        assert is_broker("redis+sentinel://a:26379,b:26379/main/0")


def test_a_submission_whose_answer_was_lost_publishes_one_message(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends the call again under its token."""
    monkeypatch.setattr("ourvidz.ledger.jobs.new_call_token", lambda: "one call")
    job = image_job("job-1")
    entry = broker_entry(job, priority=JOBS)
    answers = [installation.ledger.register(job, priority=JOBS, entry=entry) for _ in range(2)]
    assert [answer.created for answer in answers] == [True, True]
    assert len(installation.messages("sdxl_queue")) == 1


def test_messages_of_several_threads_are_not_confused(installation: Installation) -> None:
    """The shim submits on many threads."""
    ids = [f"job-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job_id: dispatch.submit(image_job(job_id), require_worker=False), ids))
    assert sorted(each["headers"]["id"] for each in installation.messages("sdxl_queue")) == sorted(ids)
