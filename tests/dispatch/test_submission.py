"""Submission: every entrance goes through one function, and is checked, recorded and published alike."""

from __future__ import annotations

import ast
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from celery import chain, group
from celery.app.task import Context
from click.testing import CliRunner
from starlette.testclient import TestClient

import ourvidz
from ourvidz import claims, dispatch, tasks
from ourvidz.app import app as celery_app
from ourvidz.cli.main import cli
from ourvidz.errors import (
    CapacityExceeded,
    Conflict,
    InvalidParameters,
    OurvidzError,
    PolicyViolation,
    WorkerUnavailable,
)
from ourvidz.jobs.catalog import CATALOG
from ourvidz.testing import Eager
from ourvidz.web.main import create_app
from tests.dispatch.conftest import Install, Installation
from tests.factories import REFUSED_TEXT, STAND_IN_GATE, publishing_to, services

IMAGE = {"id": "job-1", "type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "user-1"}
CLIP = IMAGE | {"type": "video_fast"}
CHAT = {"id": "job-1", "type": "chat_conversation", "prompt": "What is a tide?"}
LOCAL = "http://127.0.0.1:7860"

Submit = Callable[[Installation, dict[str, Any]], str | None]
"""Submits a payload through one entrance; returns the error code of a refusal, None for an admitted job."""


def post(path: str, body: Callable[[dict[str, Any]], Any]) -> Submit:
    """The entrance of one HTTP route; `body` builds the request body from the payload."""

    def submit(installation: Installation, payload: dict[str, Any]) -> str | None:
        with TestClient(create_app(installation.app), base_url=LOCAL) as client:
            answer = client.post(path, json=body(payload)).json()
        if answer.get("enhancement_strategy") == "fallback":
            # These routes answer with the prompt as it came, in place of an error that is ours.
            return "WORKER_UNAVAILABLE"
        # The OpenAI routes carry the code inside `error`.
        error = answer.get("error")
        return answer.get("code") or (error["code"] if isinstance(error, dict) else None)

    return submit


def as_messages(payload: dict[str, Any]) -> dict[str, Any]:
    return {"model": "qwen_instruct", "messages": [{"role": "user", "content": payload["prompt"]}]}


def with_the_cli(installation: Installation, payload: dict[str, Any]) -> str | None:
    """`ourvidz jobs submit -` against a running shim."""
    with serving(installation) as url:
        result = CliRunner().invoke(cli, ["jobs", "submit", "-", "--url", url], input=json.dumps(payload))
    if result.exit_code == 0:
        return None
    return next(code for code in ("POLICY_VIOLATION", "WORKER_UNAVAILABLE") if code in result.output)


def with_delay(task: str) -> Submit:
    """`task.delay(payload)` of a Python client."""

    def submit(_: Installation, payload: dict[str, Any]) -> str | None:
        tasks.load()
        return refusal(lambda: celery_app.tasks[task].delay(payload))

    return submit


def with_keyword(_: Installation, payload: dict[str, Any]) -> str | None:
    """`task.delay(message=payload)`: the same argument by its name."""
    tasks.load()
    return refusal(lambda: celery_app.tasks["ourvidz.sdxl.generate"].delay(message=payload))


def with_group(_: Installation, payload: dict[str, Any]) -> str | None:
    """A Celery group, whose signatures are applied one by one."""
    tasks.load()
    return refusal(lambda: group(celery_app.tasks["ourvidz.sdxl.generate"].si(payload)).apply_async())


def with_dispatch(_: Installation, payload: dict[str, Any]) -> str | None:
    return refusal(lambda: dispatch.submit(payload))


def refusal(submit: Callable[[], Any]) -> str | None:
    try:
        submit()
    except OurvidzError as error:
        return error.code
    return None


@contextmanager
def serving(installation: Installation) -> Iterator[str]:
    """A shim on a free port; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(create_app(installation.app), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


ENTRANCES: dict[str, tuple[Submit, dict[str, Any]]] = {
    "POST /jobs": (post("/jobs", dict), IMAGE),
    "POST /rpush": (post("/rpush/sdxl_queue", lambda payload: [json.dumps(payload)]), IMAGE),
    "POST /rpush of several": (
        post("/rpush/sdxl_queue", lambda payload: [json.dumps(payload)] * 2),
        IMAGE,
    ),
    "POST /chat": (post("/chat", dict), CHAT),
    "POST /chat/unrestricted": (post("/chat/unrestricted", dict), CHAT | {"type": "chat_unrestricted"}),
    "POST /generate": (post("/generate", dict), CHAT),
    "POST /enhance": (post("/enhance", dict), CHAT | {"type": "chat_enhance"}),
    "POST /enhance/legacy": (post("/enhance/legacy", dict), CHAT | {"type": "chat_enhance"}),
    "POST /v1/chat/completions": (post("/v1/chat/completions", as_messages), CHAT),
    "ourvidz jobs submit": (with_the_cli, IMAGE),
    "sdxl.generate.delay": (with_delay("ourvidz.sdxl.generate"), IMAGE),
    "wan.generate.delay": (with_delay("ourvidz.wan.generate"), CLIP),
    "chat.generate.delay": (with_delay("ourvidz.chat.generate"), CHAT),
    "admin.run.delay": (
        with_delay("ourvidz.admin.run"),
        {"id": "job-1", "type": "admin_utilities", "operation": "status"},
    ),
    "sdxl.generate.delay by keyword": (with_keyword, IMAGE),
    "group of signatures": (with_group, IMAGE),
    "dispatch.submit": (with_dispatch, IMAGE),
}
TEXT_ENTRANCES = [name for name in ENTRANCES if name != "admin.run.delay"]
WAITING = {"OURVIDZ_SYNC_DEADLINE_S": 0.1}
"""Synchronous routes give up quickly: no worker takes their jobs."""


@pytest.mark.parametrize("name", TEXT_ENTRANCES)
def test_every_entrance_refuses_what_the_gate_refuses(installation: Installation, name: str) -> None:
    """A caller who goes past the shim must not get past the gate."""
    submit, payload = ENTRANCES[name]
    expected = "content_policy_violation" if name.startswith("POST /v1") else "POLICY_VIOLATION"
    assert submit(installation, payload | {"prompt": REFUSED_TEXT}) in (expected, "POLICY_VIOLATION")
    assert installation.ledger.page().records == []


@pytest.mark.parametrize("name", ENTRANCES)
def test_every_entrance_refuses_a_queue_without_workers(install: Install, name: str) -> None:
    """A refusal at once is better than a job that no worker will ever take."""
    installation = install(OURVIDZ_WORKER_GRACE_S=0, **WAITING)
    submit, payload = ENTRANCES[name]
    assert submit(installation, payload) in ("WORKER_UNAVAILABLE", "worker_unavailable")
    assert installation.ledger.page().records == []


@pytest.mark.parametrize("name", ENTRANCES)
def test_every_entrance_records_and_publishes_alike(install: Install, name: str) -> None:
    """One record of the normalised job, one message that carries its id."""
    installation = install(OURVIDZ_WORKER_GRACE_S=900, **WAITING)
    submit, payload = ENTRANCES[name]
    submit(installation, payload)
    (record,) = installation.ledger.page().records
    row = CATALOG[payload["type"]]
    assert (record.type, record.queue, record.run, record.publishes) == (row.name, row.queue, 1, 1)
    (message,) = installation.messages(row.queue)
    assert message["headers"]["task"] == row.task
    assert message["headers"]["id"] == record.job_id
    assert payload.get("prompt", "never") not in json.dumps(message)


def test_a_payload_that_arrives_as_a_message_is_submitted_too(install: Install) -> None:
    """A bare `send_task` with a whole payload is checked in the worker, which is there for certain: only
    availability does not matter, and there is no second message."""
    installation = install(OURVIDZ_WORKER_GRACE_S=0)
    request = Context(task="ourvidz.sdxl.generate", hostname="sdxl@host-gpu0", is_eager=False)
    with pytest.raises(PolicyViolation):
        claims.claim_for(request, IMAGE | {"prompt": REFUSED_TEXT})
    assert installation.ledger.page().records == []
    claim = claims.claim_for(request, IMAGE)
    assert claim is not None
    assert (claim.job_id, claim.record.status) == ("job-1", "processing")
    assert installation.messages("sdxl_queue") == []


def test_options_that_a_submitted_job_cannot_have_are_refused(installation: Installation) -> None:
    """Celery would drop the rest of a chain, and a delay, without a word."""
    tasks.load()
    task = celery_app.tasks["ourvidz.sdxl.generate"]
    steps = chain(task.si(IMAGE), task.si(IMAGE | {"id": "job-2"}))
    delayed = task.si(IMAGE).set(countdown=60)
    for signature, option in ((steps, "chain"), (delayed, "countdown")):
        with pytest.raises(InvalidParameters) as refused:
            signature.apply_async()
        assert refused.value.field == option
    assert installation.ledger.page().records == []
    assert installation.messages("sdxl_queue") == []


@pytest.mark.parametrize("arguments", [(), (IMAGE, IMAGE)])
def test_a_task_takes_one_argument(installation: Installation, arguments: tuple[Any, ...]) -> None:
    """A second payload in one call would be lost."""
    tasks.load()
    with pytest.raises(TypeError):
        celery_app.tasks["ourvidz.sdxl.generate"].delay(*arguments)
    assert installation.ledger.page().records == []


@pytest.mark.parametrize("name", ["ourvidz.sdxl.generate", "ourvidz.chat.generate", "ourvidz.admin.run"])
def test_a_task_called_like_a_function_records_nothing(install: Install, name: str) -> None:
    """`generate(payload)`, and Celery's map and starmap: no worker may exist, and none has the job."""
    installation = install(OURVIDZ_WORKER_GRACE_S=0)
    tasks.load()
    with pytest.raises(TypeError, match=r"delay\(\)"):
        celery_app.tasks[name](IMAGE)
    assert installation.ledger.page().records == []


def test_eager_mode_is_its_own_worker(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The test kit checks with the same gate, and is not refused for want of workers."""
    without_models = services(None, tmp_path)
    monkeypatch.setattr("ourvidz.tasks.base.services", lambda family: without_models)
    ourvidz_eager.control.availability._grace_s = 0.0
    object.__setattr__(ourvidz_eager.control, "gate", STAND_IN_GATE)
    with pytest.raises(PolicyViolation):
        ourvidz_eager.submit(IMAGE | {"prompt": REFUSED_TEXT})
    assert ourvidz_eager.control.ledger.get("job-1") is None
    operation = {"id": "job-2", "type": "admin_utilities", "operation": "status"}
    assert ourvidz_eager.submit(operation).created
    assert ourvidz_eager.record("job-2").status == "completed"


def test_only_submission_registers_jobs() -> None:
    """A second place that writes records would be an entrance without the checks."""
    root = Path(ourvidz.__file__).parent
    callers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != "ledger"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "register" and "ledger" in ast.unparse(node.value)
    }
    assert callers == {"dispatch/submission.py"}


def test_a_known_id_needs_no_worker(install: Install) -> None:
    """A caller that repeats its request learns the state of its job, also while all workers are away."""
    install()
    assert dispatch.submit(IMAGE).created
    install(OURVIDZ_WORKER_GRACE_S=0)
    assert not dispatch.submit(IMAGE).created
    assert [each.created for each in dispatch.submit_all([IMAGE, IMAGE])] == [False, False]
    with pytest.raises(WorkerUnavailable):
        dispatch.submit(IMAGE | {"id": "job-2"})
    with pytest.raises(WorkerUnavailable) as unavailable:
        dispatch.submit_all([IMAGE, IMAGE | {"id": "job-2"}])
    assert unavailable.value.field == "[1].type"
    with pytest.raises(Conflict):
        dispatch.submit(IMAGE | {"prompt": "a blue square"})


def test_a_resubmission_meets_other_defaults(install: Install) -> None:
    """A release or a setting changed between two submissions of one request: it is the same request."""
    install(OURVIDZ_NEGATIVE_PROMPT="fog")
    assert dispatch.submit(IMAGE).created
    later = install(OURVIDZ_NEGATIVE_PROMPT="rain")
    assert not dispatch.submit(IMAGE).created
    assert [one.created for one in dispatch.submit_all([IMAGE, IMAGE | {"id": "job-2"}])] == [False, True]
    with pytest.raises(Conflict):
        dispatch.submit(IMAGE | {"negative_prompt": "rain"})
    assert later.ledger.queue_depth("sdxl_queue") == 2


def test_each_family_has_a_negative_prompt_of_its_own(install: Install) -> None:
    """A job without one gets that of its family; one that is sent wins."""
    install(OURVIDZ_NEGATIVE_PROMPT="fog", OURVIDZ_WAN_NEGATIVE_PROMPT="still picture")
    own = CLIP | {"config": {"negative_prompt": "rain"}}
    jobs: list[Any] = [dispatch.parse_payload(payload) for payload in (IMAGE, CLIP, own)]
    assert [job.negative_prompt for job in jobs] == ["fog", "still picture", "rain"]


def test_several_payloads_are_all_checked_before_one_is_recorded(installation: Installation) -> None:
    """Half a push would leave the caller guessing; the error names the index."""
    with pytest.raises(InvalidParameters) as refused:
        dispatch.submit_all([IMAGE, IMAGE | {"id": "job-2", "config": {"steps": 0}}])
    assert refused.value.field == "[1].config.steps"
    with pytest.raises(PolicyViolation) as violation:
        dispatch.submit_all([IMAGE, IMAGE | {"id": "job-2", "prompt": REFUSED_TEXT}])
    assert violation.value.field == "[1]"
    with pytest.raises(Conflict) as conflict:
        dispatch.submit_all([IMAGE, IMAGE | {"prompt": "a blue square"}])
    assert conflict.value.field == "[1].id"
    assert installation.ledger.page().records == []
    with pytest.raises(InvalidParameters):
        # All are parsed before the first is judged: a malformed push costs no more than parsing.
        dispatch.submit_all(
            [IMAGE | {"prompt": REFUSED_TEXT}, IMAGE | {"id": "job-2", "config": {"steps": 0}}]
        )
    first, second = dispatch.submit_all([IMAGE, IMAGE])
    assert (first.created, second.created) == (True, False)


def test_one_payload_alone_has_no_index(installation: Installation) -> None:
    """The field is the caller's own path."""
    with pytest.raises(InvalidParameters) as refused:
        dispatch.submit(IMAGE | {"config": {"steps": 0}})
    assert refused.value.field == "config.steps"


def test_a_job_without_callbacks_has_no_outbox_rows(installation: Installation) -> None:
    """A synchronous caller reads the answer itself."""
    record = dispatch.submit(CHAT, suppress_callbacks=True).record
    claim = installation.ledger.claim("job-1", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    assert installation.ledger.next_event(record.job_id) is None


def test_a_job_is_recorded_when_the_broker_is_away(installation: Installation) -> None:
    """The record is the truth: the sweep publishes later."""
    with publishing_to("redis://127.0.0.1:1/0"):
        record = dispatch.submit(IMAGE).record
    assert installation.ledger.get(record.job_id).published_at is None


def test_a_new_job_is_refused_without_capacity_and_a_repeat_is_not(install: Install) -> None:
    """A caller that repeats a submission must learn that its job is there."""
    installation = install(OURVIDZ_MAX_QUEUED=1)
    first = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    assert dispatch.submit(first).created
    installation.app.capacity._measured_at = None
    with pytest.raises(CapacityExceeded) as refused:
        dispatch.submit(first | {"id": "b"})
    assert (refused.value.http_status, refused.value.retryable) == (503, True)
    assert not dispatch.submit(first).created
    assert installation.ledger.get("b") is None
