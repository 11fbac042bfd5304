"""What `tls` compares: brokers and clusters that are open, or closed as `amp4ec broker init` does it."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broker.access import Role, User
from broker.closed import ClosedBroker
from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.local import LocalCluster
from shared.bus import BrokerUrl


@dataclass(slots=True)
class OpenSite:
    """Anybody may do anything."""

    broker: Broker

    def login(self, name: str, role: Role) -> str:
        """The broker's address; an open one asks nobody's name."""
        del name, role
        return self.broker.url


@dataclass(slots=True)
class ClosedSite:
    """TLS, logins and an ACL."""

    broker: Broker
    closed: ClosedBroker

    def login(self, name: str, role: Role) -> str:
        """A login as `@FILE`, made when it is asked for first: passwords do not stand on command lines."""
        path = self.closed.token_file(name)
        if not path.exists():
            token = self.closed.add(User(name=name, role=role)).token()
            path.touch(mode=0o600)
            path.write_text(token)
        # The port that was free is known only since the broker runs.
        url = replace(BrokerUrl.parse(f"@{path}"), port=self.broker.port)
        path.write_text(url.token())
        return f"@{path}"


class ClosedCluster(LocalCluster):
    """A local cluster on a closed broker: a login for each of its parts."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        closed, config = _closed(directory / "broker")
        self._broker = Broker(directory=closed.directory, config=config)
        self._site = ClosedSite(self.broker, closed)

    def address(self, name: str) -> str:
        """See `LocalCluster`."""
        role = {"orchestrator": Role.ORCHESTRATOR, "operator": Role.OPERATOR, "client": Role.CLIENT}
        return self._site.login(name, role.get(name, Role.AGENT))


def _closed(directory: Path) -> tuple[ClosedBroker, BrokerConfig]:
    closed = ClosedBroker.create(directory, hosts=["127.0.0.1"], now=dt.datetime.now(dt.UTC))
    return closed, BrokerConfig(security=closed.security, pid_file=str(closed.pid_file))


@asynccontextmanager
async def open_site(directory: Path) -> AsyncIterator[OpenSite]:
    """A broker that is open."""
    async with Broker(directory=directory) as broker:
        yield OpenSite(broker)


@asynccontextmanager
async def closed_site(directory: Path) -> AsyncIterator[ClosedSite]:
    """A broker that is closed."""
    closed, config = _closed(directory)
    async with Broker(directory=directory, config=config) as broker:
        yield ClosedSite(broker, closed)
