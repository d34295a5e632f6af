"""Callback URLs and references are validated when a payload is parsed."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import ReferenceForbidden

URL = "https://assets.example.com/a.png"
OWN = "user-library/u1/a.png"


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/done",
        "http://HOOKS.example.com:9000/done?x=1",
        "https://other.example.com:8443/",
    ],
)
def test_callback_urls_on_the_allow_list_are_accepted(image: Any, url: str) -> None:
    """A listed host without a port allows every port."""
    assert image(callback_url=url).callback_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://other.example.com/",
        "https://hooks.example.com.evil.example/",
        "https://hooks.example.com@evil.example/",
        "https://user:pw@hooks.example.com/",
        "https://evil.example\\@hooks.example.com/",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "hooks.example.com",
        "https://hooks.example.com:99999/",
        "https://[::1/",
        "https://hooks.example.com/\nHost: x",
        "https://hooks.example.com./",
        7,
        ["https://hooks.example.com/"],
    ],
)
def test_other_callback_urls_are_rejected(body: Any, refusal: Any, url: object) -> None:
    """A caller must not make the worker post to hosts inside its network."""
    error = refusal(body(callback_url=url))
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "callback_url")


@pytest.mark.parametrize(
    "value",
    [
        URL,
        "HTTP://h/a",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml,x",
        OWN,
        "workspace-temp/u1/j/0.png",
    ],
)
def test_valid_references_are_kept_as_written(image: Any, value: str) -> None:
    """They are only validated here; the worker fetches them."""
    assert image(metadata={"reference_image_url": value}).reference == value
    assert image(config={"image": value}, metadata={"reference_image_url": "file:///x"}).reference == value


@pytest.mark.parametrize(
    "value",
    [
        "file:///etc/passwd",
        "ftp://h/a.png",
        "javascript:alert(1)",
        "data:text/html,x",
        "data:,x",
        "https://",
        "https:///a.png",
        "http://[::1/a",
        "http://h h/a",
        "secrets/u1/a.png",
        "/etc/passwd",
        "//host/a.png",
        "a.png",
        "user-library/u1",
        "https://h/" + "x" * 5000,
        7,
        {"url": "https://h/a"},
        "user-library/u1/a\0.png",
    ],
)
def test_other_references_are_rejected(body: Any, refusal: Any, value: object) -> None:
    """A file URL must not reach a worker, which could open it."""
    error = refusal(body(metadata={"reference_image_url": value}))
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "metadata.reference_image_url")


def test_a_file_that_a_user_has_named_is_accepted(image: Any) -> None:
    """Users upload files under such names, which every storage can read."""
    path = "user-library/u1/my photo (1), 50 + 1 = $51! & 'more' @home; really?*.jpg"
    assert image(metadata={"reference_image_url": path}).reference == path


@pytest.mark.parametrize(
    "name", ["50%.png", "ünï.png", "a~b.png", "a\tb.png", "[a].png", "a#b.png", "x" * 256, "x/" * 450 + "x"]
)
def test_a_name_that_no_storage_reads_is_refused_with_the_rule(body: Any, refusal: Any, name: str) -> None:
    """Otherwise the job would run without its reference."""
    error = refusal(body(metadata={"reference_image_url": f"user-library/u1/{name}"}))
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "metadata.reference_image_url")
    assert "A-Z a-z 0-9, spaces and !" in error.rule


@pytest.mark.parametrize(
    "path",
    [
        "user-library/u2/a.png",
        "user-library/U1/a.png",
        "user-library/u1/../u2/a.png",
        "user-library/../u1/a.png",
        "user-library/u1//a.png",
        "user-library/u1/",
        "user-library/u1/./a.png",
        "user-library/u1/%2e%2e/u2/a.png",
        "user-library/u1/..%2fu2/a.png",
        "user-library/u1/..\\u2/a.png",
    ],
)
def test_storage_paths_of_other_users_are_forbidden(body: Any, refusal: Any, path: str) -> None:
    """A reference must not give one user access to the images of another."""
    error = refusal(body("video_fast", config={"first_frame": path}))
    assert isinstance(error, ReferenceForbidden)
    assert error.field == "config.first_frame"
