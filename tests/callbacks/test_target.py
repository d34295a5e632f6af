"""Which URLs are called, and which of them get the service key."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.callbacks.target import INVALID_URL, NO_FUNCTION, NO_URL, NOT_ALLOWED, Target
from ourvidz.errors import SettingsError

DEFAULT = "https://project.example/functions/v1/job-callback"


def target(**fields: Any) -> Target:
    defaults: dict[str, Any] = {"default_url": DEFAULT, "worker_version": "1", "service_key": "the key"}
    return Target(**defaults | fields)


def test_a_job_without_a_url_goes_to_the_default() -> None:
    """Most jobs name none."""
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
        ("https://other.example@evil.example/", ("other.example",), INVALID_URL),
        ("https://evil.example\\@other.example/", ("other.example",), INVALID_URL),
        ("ftp://other.example/", ("other.example",), INVALID_URL),
    ],
)
def test_only_the_default_and_the_listed_hosts_are_called(
    url: str, allowed: tuple[str, ...], refusal: str | None
) -> None:
    """The allow-list is checked at each delivery: an operator may have shortened it."""
    assert target(allowed_hosts=allowed).refusal(url) == refusal


def test_hosts_lists_every_host_that_may_be_called() -> None:
    """These hosts may have private addresses; no other host may."""
    configured = target(allowed_hosts=("other.example", "third.example:444"))
    assert set(configured.hosts) == {"project.example:443", "other.example", "third.example:444"}
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
def test_the_service_key_is_sent_to_the_default_url_alone(url: str) -> None:
    """The key gives access to the caller's whole backend, which an allowed host does not own."""
    configured = target(allowed_hosts=("other.example", "project.example"))
    assert configured.service_key_for(url) is None
    assert configured.service_key_for(DEFAULT) == "the key"


def test_an_operator_may_send_the_service_key_to_listed_hosts() -> None:
    """The same owner may run a second edge function on another domain."""
    configured = target(allowed_hosts=("other.example",), key_hosts=("other.example",))
    assert configured.service_key_for("https://other.example/") == "the key"
    assert configured.service_key_for("https://third.example/") is None


def test_no_secret_is_printed() -> None:
    """Targets appear in tracebacks and debug output."""
    shown = repr(target(callback_secrets=("s1",), webhook_secrets=("whsec_c2VjcmV0",)))
    assert not {"the key", "s1", "c2VjcmV0"} & set(shown.replace("'", " ").replace("_", " ").split())


@pytest.mark.parametrize(
    ("fields", "variable"),
    [
        ({"default_url": "https://user:pw@project.example/"}, "OURVIDZ_CALLBACK_URL"),
        ({"default_url": "project.example"}, "OURVIDZ_CALLBACK_URL"),
        ({"webhook_secrets": ("%",)}, "OURVIDZ_WEBHOOK_SECRET"),
    ],
)
def test_a_malformed_target_is_a_settings_error(fields: dict[str, Any], variable: str) -> None:
    """It is reported at start, before every job becomes a dead letter."""
    with pytest.raises(SettingsError, match=variable):
        target(**fields)


def test_deliveries_are_limited_by_what_the_operator_has_listed() -> None:
    """Each port of a listed host is a receiver of its own only where the operator names the port."""
    configured = target(allowed_hosts=("other.example", "third.example:8443"))
    assert configured.limiter_key(DEFAULT) == "project.example:443"
    assert configured.limiter_key("https://other.example:1/") == "other.example"
    assert configured.limiter_key("https://OTHER.example:2/") == "other.example"
    assert configured.limiter_key("https://third.example:8443/") == "third.example:8443"
    assert configured.limiter_key("no URL") == ""


def test_registrations_go_to_their_functions_only() -> None:
    """And the key with them, to nowhere else."""
    function = "https://project.example/functions/v1/update-worker-url"
    configured = target(registration_urls=(function,))
    assert configured.refusal(function, registration=True) is None
    assert configured.refusal(DEFAULT, registration=True) == NO_FUNCTION
    assert configured.service_key_for(function, registration=True) == "the key"
    assert configured.service_key_for(function) is None
