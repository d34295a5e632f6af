"""An installation whose ledger and broker are one real server, and from whose queues no worker takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import STAND_IN_GATE, publishing_to

PRIORITIES = (0, 3, 6, 9)


@dataclass
class Installation:
    """The control plane of a process, and a view of the broker's queues."""

    app: control.ControlPlane
    broker: redis.Redis

    @property
    def ledger(self) -> Any:
        """The ledger, which is also `control.current().ledger`."""
        return self.app.ledger

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """The messages of a queue in the broker, most urgent priority first, newest first within one."""
        prefix = self.app.settings.broker_prefix
        names = [queue if priority == 0 else f"{queue}\x06\x16{priority}" for priority in PRIORITIES]
        return [json.loads(raw) for name in names for raw in self.broker.lrange(prefix + name, 0, -1)]


Install = Callable[..., Installation]


@pytest.fixture
def install(redis_url: str, tmp_path: Path) -> Iterator[Install]:
    """Build an installation and make it the current one; settings by variable name. Its gate refuses
    `factories.REFUSED_TEXT`."""
    with ExitStack() as stack:

        def build(**variables: Any) -> Installation:
            settings = load_settings(
                _env_file=None,
                **{"OURVIDZ_STATE_DIR": tmp_path / "state", "OURVIDZ_REDIS_URL": redis_url, **variables},
            )
            ledger = Ledger(redis_url)
            stack.callback(ledger.close)
            app = control.build(settings, ledger=ledger)
            object.__setattr__(app, "gate", STAND_IN_GATE)
            stack.enter_context(publishing_to(redis_url))
            stack.enter_context(control.using(app))
            return Installation(app, stack.enter_context(redis.Redis.from_url(redis_url)))

        yield build


@pytest.fixture
def installation(install: Install) -> Installation:
    """An installation with the default settings."""
    return install()
