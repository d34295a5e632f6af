"""`ourvidz flower`: Celery's monitor with a login and a check of `Host`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, set_environment, settings
from ourvidz.settings.kinds import reveal

LOGIN = "OURVIDZ_FLOWER_LOGIN"
PURGE_OFFLINE_S = 300


@click.command(short_help="Run Flower, Celery's monitor, with a login.")
@click.option("--address", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True)
def flower(address: str, port: int) -> None:
    """Run Flower, Celery's monitor.

    Its pages and its API need the login of OURVIDZ_FLOWER_LOGIN, and requests a Host that is this machine or
    one of OURVIDZ_FLOWER_HOSTS.
    """
    current = settings()
    login = find_login(current)
    if login is None and not current.flower_open_api:
        raise SettingsError(f"{LOGIN}: Flower needs a login, user:password", field=LOGIN)
    # Flower reads it from there: other users of this machine see the arguments of a process.
    set_environment(**({"FLOWER_BASIC_AUTH": login} if login else {}))
    try:
        from flower.app import Flower
    except ImportError:
        raise SettingsError("Flower is not installed: pip install 'ourvidz[flower]'") from None
    from celery.bin.celery import celery

    from ourvidz.web.hosts import LOOPBACK_NAMES

    check_hosts(Flower, {*LOOPBACK_NAMES, address, *map(str.lower, current.flower_hosts)})
    place = [f"--address={address}", f"--port={port}"]
    options = [f"--purge_offline_workers={PURGE_OFFLINE_S}", "--natural_time=true"]
    celery.main(args=["-A", "ourvidz.app", "flower", *place, *options], prog_name="celery")


def find_login(current: Settings) -> str | None:
    """The login that the operator has set, `user:password`; None for none. Raises `SettingsError`."""
    for variable, secret in ((LOGIN, current.flower_login), ("FLOWER_BASIC_AUTH", current.flower_basic_auth)):
        login = reveal(secret)
        if login is None:
            continue
        user, _, password = login.partition(":")
        if not (user and password) or (variable == LOGIN and "," in login):
            raise SettingsError(f"{variable}: must be user:password, without a comma", field=variable)
        return login
    return None


def check_hosts(application: Any, names: Collection[str]) -> None:
    """Let a class of Tornado applications answer 403 to requests whose `Host` is none of `names`.

    A page of another site whose name leads to this machine could read and command it otherwise.
    """
    from tornado.web import ErrorHandler

    from ourvidz.web.hosts import host_name

    find_handler = application.find_handler

    def find_handler_of_host(self: Any, request: Any, **options: Any) -> Any:
        if host_name(request.host) in names:
            return find_handler(self, request, **options)
        return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    application.find_handler = find_handler_of_host
