"""URLs of a service that sentinels watch: what they mean, and their form for Kombu."""

from __future__ import annotations

import pytest

from ourvidz.errors import SettingsError
from ourvidz.sentinel_url import SentinelURL, parse_sentinel_url
from ourvidz.settings import load_settings

FULL = (
    "redis+sentinel://jo%40b:p%3Aw%3B@one:26379,two,[fd00::3]:26380/main/2"
    "?sentinel_username=watch&sentinel_password=s3"
)


def test_every_part_of_a_url_is_read() -> None:
    """Names and passwords are percent-encoded, as in every URL; the port of a sentinel has a default."""
    assert parse_sentinel_url(FULL) == SentinelURL(
        sentinels=(("one", 26379), ("two", 26379), ("fd00::3", 26380)),
        service="main",
        database=2,
        credentials={"username": "jo@b", "password": "p:w;"},
        sentinel_credentials={"username": "watch", "password": "s3"},
    )


def test_kombu_gets_one_url_for_each_sentinel() -> None:
    """It splits them at semicolons, so one in a password must be encoded."""
    login = "sentinel://jo%40b:p%3Aw%3B@"
    assert parse_sentinel_url(FULL).broker_url == ";".join(
        f"{login}{host}/2" for host in ("one:26379", "two:26379", "[fd00::3]:26380")
    )
    assert parse_sentinel_url("redis+sentinel://one/main").broker_url == "sentinel://one:26379/0"


def test_tls_requires_a_valid_certificate_unless_the_url_says_otherwise() -> None:
    """Of the servers and of the sentinels."""
    url = parse_sentinel_url("rediss+sentinel://:pw@one/main/0?ssl_ca_certs=/ca.pem")
    assert url.tls == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}
    assert url.server_options == {"password": "pw", "db": 0, "ssl": True, **url.tls}
    assert url.sentinel_options == {"ssl": True, **url.tls}
    lax = parse_sentinel_url("rediss+sentinel://one/main?ssl_cert_reqs=none&ssl_check_hostname=false")
    assert lax.tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://one:26379", "the name of the service"),
        ("redis+sentinel://one/main/first", "number of a database"),
        ("redis+sentinel://one,,two/main", "addresses of sentinels"),
        ("redis+sentinel:///main", "addresses of sentinels"),
        ("redis+sentinel://one/main?ssl_ca_certs=/ca.pem", "not ssl_ca_certs"),
        ("rediss+sentinel://one/main?timeout=3", "not timeout"),
    ],
)
def test_a_wrong_url_stops_the_process_with_the_reason(url: str, complaint: str) -> None:
    """Else every process would wait for ever for a service that does not exist."""
    with pytest.raises(SettingsError, match=f"^OURVIDZ_REDIS_URL: must be a URL .*{complaint}"):
        load_settings(_env_file=None, OURVIDZ_REDIS_URL=url)


def test_credentials_are_not_shown() -> None:
    """A dataclass in a traceback would show them."""
    assert "p:w" not in repr(parse_sentinel_url(FULL))
    assert "s3" not in repr(parse_sentinel_url(FULL))
