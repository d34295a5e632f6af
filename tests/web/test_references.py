"""`POST /references` and `DELETE /references/{path}`."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from PIL import Image

from ourvidz.storage.keys import UPLOADS
from ourvidz.web import references
from tests.web.conftest import USER, Shim

PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def picture(size: tuple[int, int] = (30, 20), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind, **options)
    return file.getvalue()


def upload(shim: Shim, data: bytes | None = None, user_id: str = USER) -> Any:
    """Upload a file as the body."""
    content = picture() if data is None else data
    return shim.client.post("/references", params={"user_id": user_id}, content=content)


@pytest.mark.parametrize("form", [False, True], ids=["body", "form"])
def test_an_uploaded_picture_is_a_reference_of_its_user(shim: Shim, form: bool) -> None:
    """Its path is accepted in a job of the same user, and in no other's."""
    if form:
        files = {"file": ("a.jpg", picture(kind="JPEG"), "image/jpeg")}
        answer = shim.client.post("/references", files=files, data={"user_id": USER})
    else:
        answer = upload(shim)
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert (document["user_id"], document["width"], document["height"]) == (USER, 30, 20)
    path = document["path"]
    assert Image.open(io.BytesIO(shim.store.get(path))).size == (30, 20)
    shim.submit(config={"image": path})
    other = shim.client.post("/jobs", json=shim.payload(id="job-2", user_id="bob", config={"image": path}))
    assert (other.status_code, other.json()["code"]) == (422, "REFERENCE_FORBIDDEN")


def test_the_answer_says_until_when_it_is_kept(open_shim: Callable[..., Shim]) -> None:
    """The setting, rounded up a little."""
    from datetime import datetime

    shim = open_shim(OURVIDZ_REFERENCE_TTL_S=7200)
    expires_at = datetime.fromisoformat(upload(shim).json()["expires_at"]).timestamp()
    assert 7200 - 60 <= expires_at - shim.ledger.now() <= 7200 + 72


def test_metadata_is_not_stored(shim: Shim) -> None:
    """Phones write where a picture was taken."""
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    path = upload(shim, picture(kind="JPEG", exif=exif)).json()["path"]
    assert b"taken at home" not in shim.store.get(path)


def test_an_upload_is_deleted_by_its_user_alone(shim: Shim) -> None:
    """A second deletion answers like the first."""
    path = upload(shim).json()["path"]
    refused = shim.client.delete(f"/references/{path}", params={"user_id": "bob"})
    assert (refused.status_code, refused.json()["code"]) == (422, "REFERENCE_FORBIDDEN")
    assert shim.client.delete(f"/references/{path}").status_code == 422
    assert shim.store.exists(path)
    for _ in range(2):
        answer = shim.client.delete(f"/references/{path}", params={"user_id": USER})
        assert (answer.status_code, answer.json()) == (200, {"path": path, "deleted": True})
    assert not shim.store.exists(path)


def test_the_files_of_jobs_are_no_uploads(shim: Shim) -> None:
    """They belong to their jobs, and are deleted with them."""
    key = f"workspace-temp/{USER}/job-1/0.png"
    shim.store.put(key, picture(), content_type="image/png")
    assert shim.client.delete(f"/references/{key}", params={"user_id": USER}).status_code == 404
    assert shim.store.exists(key)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", PNG_HEAD, picture()[:60],
        b"GIF89a" + b"\xff" * 20, picture() [:-20] + b"\0" * 8, bytes(1000),
    ],
    ids=["nothing", "svg", "pdf", "a signature", "truncated", "a broken gif", "a broken end", "zeros"],
)  # fmt: skip
def test_a_file_that_is_no_picture_is_refused(shim: Shim, data: bytes) -> None:
    """With the code of a reference that cannot be used, and nothing is stored."""
    answer = upload(shim, data)
    assert answer.status_code == 422
    assert answer.json()["code"] in ("REFERENCE_FRAME_ERROR", "INVALID_PARAMETERS")
    assert shim.store.folders(UPLOADS) == []


def test_a_bomb_is_refused(open_shim: Callable[..., Shim]) -> None:
    """A file of a few kilobytes that would take gigabytes."""
    shim = open_shim(OURVIDZ_REFERENCE_LIMIT_PIXELS=1_000_000)
    answer = upload(shim, picture((3000, 3000)))
    assert (answer.status_code, answer.json()["code"]) == (422, "REFERENCE_FRAME_ERROR")


@pytest.mark.parametrize("form", [False, True], ids=["body", "form"])
def test_the_size_of_a_file_is_limited(open_shim: Callable[..., Shim], form: bool) -> None:
    """As the body arrives: nothing of it is kept. Other routes keep their own limit."""
    shim = open_shim(OURVIDZ_REFERENCE_LIMIT_BYTES=100_000, OURVIDZ_BODY_LIMIT_BYTES=2000)
    for size, status in ((100_000, 201), (100_001, 413), (100_000 + references.MULTIPART_BYTES, 413)):
        data = picture().ljust(size, b"\0")
        if form:
            answer = shim.client.post("/references", files={"file": ("a", data)}, data={"user_id": USER})
        else:
            answer = upload(shim, data)
        assert answer.status_code == status, answer.text
        assert status == 201 or answer.json()["code"] == "PAYLOAD_TOO_LARGE"
    assert shim.client.post("/jobs", content=bytes(3000)).status_code == 413


@pytest.mark.parametrize(
    "user_id", [None, "", "../bob", "a/b", ".hidden", "bob ", "bob\n", "x" * 129, "%2e%2e", "b\u00f6b"]
)
def test_an_upload_needs_a_user(shim: Shim, user_id: str | None) -> None:
    """The user is a part of the path: nothing else may be one."""
    parameters = {} if user_id is None else {"user_id": user_id}
    for answer in (
        shim.client.post("/references", params=parameters, content=picture()),
        shim.client.post("/references", files={"file": ("a.png", picture())}, data=parameters),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, "user_id")
    assert shim.store.folders(UPLOADS) == []


def test_a_form_cannot_name_another_user_than_the_url(shim: Shim) -> None:
    """A proxy may have checked the one that it sees."""
    files = {"file": ("a.png", picture())}
    answer = shim.client.post("/references", params={"user_id": "ada"}, files=files, data={"user_id": "bob"})
    assert (answer.status_code, answer.json()["field"]) == (422, "user_id")


def multipart(*lines: bytes, boundary: str = "b") -> dict[str, Any]:
    body = b"\r\n".join((*lines, b""))
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


FILE = (b"--b", b'Content-Disposition: form-data; name="file"; filename="a.png"', b"", picture())
USER_FIELD = (b"--b", b'Content-Disposition: form-data; name="user_id"', b"", USER.encode())


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": picture(), "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {"content": picture(), "headers": {"Content-Type": "multipart/form-data; charset=rot13; boundary=b"}},
        multipart(*USER_FIELD, b"--b--"),
        multipart(*FILE, *FILE, *USER_FIELD, b"--b--"),
        multipart(
            b"--b", b'Content-Disposition: form-data; name="file"', b"", b"text", *USER_FIELD, b"--b--"
        ),
        multipart(b"--b", b"no header", b"", picture(), b"--b--"),
        multipart(*USER_FIELD * 20, *FILE, b"--b--"),
        multipart(b"--b", b'Content-Disposition: form-data; name="x"', b"", bytes(70_000), *FILE, b"--b--"),
        multipart(*USER_FIELD, *FILE),
    ],
    ids=[
        *("no boundary", "no form", "a charset", "no file", "two files", "text", "no header", "many fields"),
        *("a large field", "no end"),
    ],
)
def test_a_form_without_one_file_is_refused(shim: Shim, request_: dict[str, Any]) -> None:
    """Never an error of ours."""
    answer = shim.client.post("/references", **request_)
    if answer.status_code == 201:
        # A form that breaks off after its file has nothing else to say.
        assert request_["content"].startswith(b"--b")
        return
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_PARAMETERS")


def test_a_form_with_a_charset_that_does_not_exist_is_refused(shim: Shim) -> None:
    """Its names cannot be read."""
    request = multipart(*USER_FIELD, *FILE, b"--b--")
    request["headers"]["Content-Type"] += "; charset=nonsense"
    assert shim.client.post("/references", **request).status_code in (201, 422)


def test_only_keys_of_the_scope_jobs_upload_and_delete(open_shim: Callable[..., Shim]) -> None:
    """Before anything of the body is read."""
    shim = open_shim(OURVIDZ_API_KEYS="caller:one:jobs talker:two:chat reader:three:read")
    for key, status in (("one", 201), ("two", 403), ("three", 403), ("four", 401)):
        headers = {"X-API-Key": key}
        answer = shim.client.post("/references", params={"user_id": USER}, content=picture(), headers=headers)
        assert answer.status_code == status
        path = answer.json().get("path", "reference_images/a/uploads/x")
        deleted = shim.client.delete(f"/references/{path}", params={"user_id": USER}, headers=headers)
        assert deleted.status_code == {201: 200}.get(status, status)


def test_the_number_of_uploads_at_a_time_is_limited(
    shim: Shim, serve: Callable[[Shim], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds its file in memory. The next one is served when one has ended."""
    monkeypatch.setattr(references, "MAX_UPLOADS", 1)
    url, sent, go_on = serve(shim), threading.Event(), threading.Event()
    data = picture()

    def slowly() -> Any:
        yield data[:10]
        sent.set()
        go_on.wait(30)
        yield data[10:]

    answers: list[int] = []
    target = f"{url}/references?user_id={USER}"
    slow = threading.Thread(
        target=lambda: answers.append(requests.post(target, data=slowly(), timeout=30).status_code)
    )
    slow.start()
    sent.wait(30)
    while (refused := requests.post(target, data=data, timeout=30)).status_code == 201:
        pass  # the first bytes of the other are still on their way
    assert (refused.status_code, refused.json()["code"]) == (503, "CAPACITY_EXCEEDED")
    assert int(refused.headers["Retry-After"]) >= 1
    go_on.set()
    slow.join()
    assert answers == [201]
    assert requests.post(target, data=data, timeout=30).status_code == 201


def test_a_body_that_does_not_end_is_given_up(
    shim: Shim, serve: Callable[[Shim], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold its place for ever."""
    monkeypatch.setattr(references, "RECEIVE_S", 0.05)
    url, answered = serve(shim), threading.Event()

    def endless() -> Any:
        yield picture()[:10]
        answered.wait(0.4)

    answer = requests.post(f"{url}/references?user_id={USER}", data=endless(), timeout=30)
    answered.set()
    assert (answer.status_code, answer.json()["field"]) == (422, "file")
