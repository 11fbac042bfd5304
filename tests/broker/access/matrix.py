"""Every role, every topic, every way to it: what the broker let through, as others saw it.

Nothing here is taken from what the broker says. A message counts as written when the witness, who may
everything, got it; as read when it was in the role's own hands. Where the broker's word differs from its deed
(it grants every subscription, and takes every last will), the deed is what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker.access import Role, User
from shared.bus import BrokerUrl
from shared.topics import TABLE, Topics
from tests.broker.access.peer import Peer, RefusedError
from tests.broker.access.rules import DISCOVERY, OUTSIDE, READ, ROLES, WRITE, may, named
from tests.broker.access.site import Site, let_witness_in, make, run

Level = Literal["own", "other", "orchestrator", "any", "outside"]
NOBODY = "nobody"
WRITES = ("publish QoS 0", "publish QoS 1", "publish QoS 2", "publish retained", "last will")
READS = ("subscribe exactly", "subscribe pattern", "subscribe #", "subscribe shared", "retained")
VERBS = (*WRITES, *READS)
_NAMES = {"other": "somebody-else", "orchestrator": "orchestrator"}


@dataclass(frozen=True, slots=True)
class Target:
    """A topic to try: a row of the table with somebody's name in it, or one outside the table.

    `pattern` is the widest subscription that covers it and a row.
    """

    label: str
    row: str | None
    level: Level
    topic: str
    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One try: what was seen and what is right. `told` is whether the broker said no; None: no answer."""

    role: str
    target: str
    topic: str
    verb: str
    allowed: bool
    expected: bool
    told: bool | None = None

    @property
    def right(self) -> bool:
        """Whether what was seen is what is right."""
        return self.allowed == self.expected


def targets(topics: Topics, me: str) -> list[Target]:
    """All that user `me` tries."""
    found = []
    for spec in TABLE:
        levels: tuple[Level, ...] = (
            ("own", "other", "orchestrator") if named(spec.name) else ("any",)
        )
        for level in levels:
            name = _NAMES.get(level, me)
            topic = topics.topic(
                spec.name, node=name, client=name, peer=name, model="m", job="j", pipeline="p",
                generation=1, stage=0, verb="serve", standby="s", asker="a",
            )  # fmt: skip
            label = spec.name if level == "any" else f"{spec.name} ({level})"
            found.append(Target(label, spec.name, level, topic, topics.pattern(spec.name)))
    for form in OUTSIDE:
        topic = form.format(root=topics.root, own=me)
        pattern = f"{topic.rsplit('/', 1)[0]}/#" if "/" in topic else "+"
        found.append(Target(form, None, "outside", topic, pattern))
    return found


def expected(role: str, target: Target, verb: str, topics: Topics) -> bool:
    """What is right, by the tables of `rules`."""
    if role == NOBODY:
        return False
    if verb == "subscribe #" and target.topic.startswith("$"):
        return False  # MQTT 5, 4.7.2: a wildcard at the front leaves these out
    if target.label in DISCOVERY:
        return role in DISCOVERY[target.label][verb in WRITES].split()
    if target.row is None:
        return role == "orchestrator" and f"{target.topic}/".startswith(f"{topics.root}/")
    return may(WRITE if verb in WRITES else READ, role, target.row, target.level)


async def measure(directory: Path) -> list[Cell]:
    """The whole matrix, on a closed broker made in `directory` for it."""
    closed = make(directory)
    issued = {
        role: closed.add(User(name=f"{role}-1", role=Role(role))) for role in ROLES
    } | _strangers(closed.add(User(name="revoked", role=Role.ORCHESTRATOR)))
    closed.revoke("revoked")
    witness = let_witness_in(closed)
    async with run(closed) as running:
        site = Site(closed, running)
        logins = {name: site.at(url) for name, url in issued.items()}
        with Peer(site.at(witness)) as seer:
            return _measure(seer, logins, site.topics)


def _strangers(revoked: BrokerUrl) -> dict[str, BrokerUrl]:
    """Those who are nobody: without a name, with another's, with what was taken back."""
    ways = {
        "no login": (None, None),
        "no password": ("orchestrator", None),
        "a guess": ("orchestrator", "guess"),
        "revoked": (revoked.username, revoked.password),
    }
    return {
        f"{NOBODY}: {way}": BrokerUrl(
            host=revoked.host, username=name, password=password, tls=True, ca_pem=revoked.ca_pem
        )
        for way, (name, password) in ways.items()
    }


def _measure(seer: Peer, logins: dict[str, BrokerUrl], topics: Topics) -> list[Cell]:
    seer.subscribe(["#"])
    cells: list[Cell] = []
    for login, url in logins.items():
        role, _, way = login.partition(": ")
        mine = targets(topics, f"{role}-1")
        try:
            seen = _written(seer, url, mine)
        except RefusedError:
            assert role == NOBODY, f"{login} cannot log in"
            seen = {}
        for target in mine:
            for verb in WRITES:
                told, allowed = seen.get((target.topic, verb), (True, False))
                right = expected(role, target, verb, topics)
                cells.append(_cell(login, target, verb, allowed=allowed, right=right, told=told))
        assert bool(seen) != bool(way), f"{login} is let in"
    cells += _read(seer, logins, topics)
    return cells


def _cell(
    login: str, target: Target, verb: str, *, allowed: bool, right: bool, told: bool | None
) -> Cell:
    return Cell(
        role=login,
        target=target.label,
        topic=target.topic,
        verb=verb,
        allowed=allowed,
        expected=right,
        told=told,
    )


def _written(
    seer: Peer, url: BrokerUrl, mine: list[Target]
) -> dict[tuple[str, str], tuple[bool | None, bool]]:
    """By topic and verb: whether the broker said no, and whether the witness saw it."""
    seer.received.clear()
    told: dict[tuple[str, str], bool | None] = {}
    with Peer(url) as peer:
        asked = {
            (target.topic, verb): peer.publish(
                target.topic, verb.encode(), qos=qos, retain=verb == "publish retained"
            )
            for target in mine
            for verb, qos in zip(WRITES, (0, 1, 2, 1), strict=False)
        }
        for key, mid in asked.items():
            told[key] = None if mid is None else peer.refused(mid)
        peer.settle()
    for target in mine:
        with Peer(url, will=(target.topic, b"last will")) as peer:
            peer.die()
        told[target.topic, "last will"] = None
    seer.settle()
    seen = {(topic, payload.decode()) for topic, payload, _ in seer.received}
    return {key: (no, key in seen) for key, no in told.items()}


def _say(seer: Peer, topics: set[str], payload: bytes, *, retain: bool = False) -> None:
    """On every topic; returns when the broker has them all."""
    mids = [seer.publish(topic, payload, retain=retain) for topic in sorted(topics)]
    refused = [mid for mid in mids if mid is not None and seer.refused(mid)]
    assert not refused, "the witness may everything"


def _read(seer: Peer, logins: dict[str, BrokerUrl], topics: Topics) -> Iterator[Cell]:
    """All roles at once: each message of the witness is offered to everybody who asked for it."""
    everything = {
        target.topic for role in (*ROLES, NOBODY) for target in targets(topics, f"{role}-1")
    }
    ours = {topic for topic in everything if not topic.startswith("$")}
    _say(seer, ours, b"retained", retain=True)
    with ExitStack() as stack:
        readers: dict[tuple[str, str], Peer] = {}
        for login, url in logins.items():
            mine = targets(topics, f"{login}-1")
            for verb, patterns in (
                ("retained", [target.topic for target in mine]),
                ("subscribe exactly", [target.topic for target in mine]),
                ("subscribe pattern", [target.pattern for target in mine]),
                ("subscribe #", ["#"]),
                ("subscribe shared", [f"$share/g-{login[:5]}/{target.topic}" for target in mine]),
            ):
                try:
                    reader = stack.enter_context(Peer(url))
                except RefusedError:
                    continue
                reader.subscribe(patterns)
                reader.settle()
                if verb != "retained":
                    reader.received.clear()
                readers[login, verb] = reader
        _say(seer, ours, b"live")
        for reader in readers.values():
            reader.settle()
    for login in logins:
        role = login.partition(": ")[0]
        for target in targets(topics, f"{role}-1"):
            for verb in READS:
                found = readers.get((login, verb))
                what = b"retained" if verb == "retained" else b"live"
                allowed = found is not None and any(
                    topic == target.topic and (payload == what or topic.startswith("$"))
                    for topic, payload, _ in found.received
                )
                right = expected(role, target, verb, topics)
                yield _cell(login, target, verb, allowed=allowed, right=right, told=None)
