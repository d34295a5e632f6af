"""Who may be told, and who may see the service key."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.callbacks.target import NO_URL, NOT_ALLOWED, NOT_PLAIN, Target
from ourvidz.errors import SettingsError

DEFAULT = "https://project.example/functions/v1/job-callback"


def target(**chosen: Any) -> Target:
    given: dict[str, Any] = {"default_url": DEFAULT, "worker_version": "1", "service_key": "the key"}
    return Target(**given | chosen)


def test_a_job_without_a_url_goes_to_the_default() -> None:
    """Most callers name none."""
    assert target().url(None) == DEFAULT
    assert target().url("https://other.example/") == "https://other.example/"
    assert target(default_url=None).refusal(target(default_url=None).url(None)) == NO_URL


@pytest.mark.parametrize(
    ("url", "allowed", "refusal"),
    [
        (DEFAULT, (), None),
        ("https://project.example/elsewhere", (), None),
        ("http://project.example/", (), NOT_ALLOWED),
        ("https://other.example/", (), NOT_ALLOWED),
        ("https://other.example/", ("other.example",), None),
        ("https://OTHER.example:444/", ("Other.Example",), None),
        ("https://other.example:444/", ("other.example:444",), None),
        ("https://other.example/", ("other.example:443",), None),
        ("https://other.example:445/", ("other.example:444",), NOT_ALLOWED),
        ("https://sub.other.example/", ("other.example",), NOT_ALLOWED),
        ("https://other.example@evil.example/", ("other.example",), NOT_PLAIN),
        ("https://evil.example\\@other.example/", ("other.example",), NOT_PLAIN),
        ("ftp://other.example/", ("other.example",), NOT_PLAIN),
    ],
)
def test_only_the_default_and_the_listed_hosts_are_called(
    url: str, allowed: tuple[str, ...], refusal: str | None
) -> None:
    """The list is asked again at delivery: an operator may have shortened it."""
    assert target(allowed_hosts=allowed).refusal(url) == refusal


def test_every_host_that_may_be_told_is_known() -> None:
    """They may have private addresses; no other host may."""
    chosen = target(allowed_hosts=("other.example", "third.example:444"))
    assert set(chosen.hosts) == {"project.example:443", "other.example", "third.example:444"}
    assert target(default_url=None).hosts == ()


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/",
        "http://project.example/",
        "https://project.example:444/",
        "https://project.example@other.example/",
    ],
)
def test_the_service_key_stays_with_the_default_origin(url: str) -> None:
    """The key opens the caller's whole backend; an allowed host is not its owner."""
    chosen = target(allowed_hosts=("other.example", "project.example"))
    assert chosen.service_key_for(url) is None
    assert chosen.service_key_for(DEFAULT) == "the key"


def test_an_operator_may_share_the_service_key() -> None:
    """A second edge function on another domain of the same owner."""
    chosen = target(allowed_hosts=("other.example",), key_hosts=("other.example",))
    assert chosen.service_key_for("https://other.example/") == "the key"
    assert chosen.service_key_for("https://third.example/") is None


def test_no_secret_is_printed() -> None:
    """Targets end up in tracebacks and debug output."""
    shown = repr(target(callback_secrets=("s1",), webhook_secrets=("whsec_c2VjcmV0",)))
    assert not {"the key", "s1", "c2VjcmV0"} & set(shown.replace("'", " ").replace("_", " ").split())


@pytest.mark.parametrize(
    ("chosen", "variable"),
    [
        ({"default_url": "https://user:pw@project.example/"}, "OURVIDZ_CALLBACK_URL"),
        ({"default_url": "project.example"}, "OURVIDZ_CALLBACK_URL"),
        ({"webhook_secrets": ("%",)}, "OURVIDZ_WEBHOOK_SECRET"),
    ],
)
def test_a_wrong_target_is_one_line_at_start(chosen: dict[str, Any], variable: str) -> None:
    """Better than a dead letter for every job."""
    with pytest.raises(SettingsError, match=variable):
        target(**chosen)
