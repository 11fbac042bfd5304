"""A closed broker that runs, with a login for whoever asks, and one witness who may everything."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from broker.access import Role, User
from broker.closed import ClosedBroker
from broker.config import BrokerConfig
from broker.launcher import Broker
from broker.passwords import new_password, password_line
from shared.bus import BrokerUrl
from shared.topics import Topics

NOW = dt.datetime.now(dt.UTC)
WITNESS = "witness"


def make(directory: Path) -> ClosedBroker:
    """A closed broker's directory, for this machine's names."""
    return ClosedBroker.create(directory, hosts=["localhost", "127.0.0.1"], now=NOW)


class Site:
    """A closed broker that runs, and everybody's login."""

    def __init__(self, closed: ClosedBroker, running: Broker) -> None:
        self.closed = closed
        self.running = running
        self.topics = Topics(closed.root)

    def url(self, name: str, role: str) -> BrokerUrl:
        """A new login."""
        return self.at(self.closed.add(User(name=name, role=Role(role))))

    def at(self, issued: BrokerUrl) -> BrokerUrl:
        """The login, at the port that was free here."""
        return replace(issued, port=self.running.port)

    def first(self, name: str) -> BrokerUrl:
        """A login that `create` made."""
        return self.at(BrokerUrl.parse(f"@{self.closed.token_file(name)}"))


def run(closed: ClosedBroker) -> Broker:
    """The broker of a directory, not started yet."""
    config = BrokerConfig(security=closed.security, pid_file=str(closed.pid_file))
    return Broker(directory=closed.directory, config=config)


@asynccontextmanager
async def closed_site(directory: Path) -> AsyncIterator[Site]:
    """A site in a directory of its own."""
    closed = make(directory)
    async with run(closed) as running:
        yield Site(closed, running)


def let_witness_in(closed: ClosedBroker) -> BrokerUrl:
    """Somebody who sees what no role of ours may, so that what is denied was there to be had.

    Written past the product: a later `add` or `revoke` takes him out again. To be called before the start.
    """
    password = new_password()
    with (closed.directory / "passwords").open("a") as file:
        file.write(password_line(WITNESS, password) + "\n")
    with (closed.directory / "acl").open("a") as file:
        file.write(f"\nuser {WITNESS}\ntopic readwrite #\ntopic read $SYS/#\n")
    ca_pem = (closed.directory / "ca.pem").read_text()
    return BrokerUrl(host="localhost", username=WITNESS, password=password, tls=True, ca_pem=ca_pem)
