"""Who may do what on a closed broker: roles, their topics, and the ACL file that says so to Mosquitto.

Pure: values in, text out. Mosquitto's rule is the one to keep in mind: what no line allows is denied, so a
topic that is added to the table is closed to everybody but the orchestrator until a line here opens it.

What a user reads is checked when a message is delivered, not when a topic is subscribed to: a subscription
to `#` is accepted and then gets what its role may read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from broker.bridge import CROSSINGS, Direction
from shared.errors import ConfigurationError
from shared.ids import HOME_ASSISTANT, ORCHESTRATOR, check_name
from shared.topics import Topics


class Role(StrEnum):
    """What a credential is for."""

    ORCHESTRATOR = "orchestrator"
    """Decides and deploys: every topic below the root."""
    OPERATOR = "operator"
    """Asks for models to be served, and uploads them; sees what a monitor sees, does what a client may."""
    AGENT = "agent"
    """One node: speaks for itself only, computes stages."""
    CLIENT = "client"
    """Sends jobs in its own name, and reads its own answers."""
    MONITOR = "monitor"
    """Reads what is meant for people; writes nothing."""
    HOME_ASSISTANT = "home-assistant"
    """Sees what a monitor sees, and what is announced to it; says when it has started."""
    BRIDGE = "bridge"
    """Another broker: all that its agents and clients say and hear (`broker/bridge.py`)."""


Access = Literal["read", "write", "readwrite"]

_ACROSS: dict[Direction, Access] = {"out": "write", "in": "read", "both": "readwrite"}

OPEN_TO_ALL: tuple[str, ...] = (
    "node_state", "telemetry", "cordon", "model_state", "orchestrator_state",
)  # fmt: skip
"""What every role but an agent may read: who is there, how they do, what is served."""
WATCHED: tuple[str, ...] = (
    *OPEN_TO_ALL, "report", "event", "metrics", "orchestrator_info", "health",
)  # fmt: skip
"""What is meant for people."""

_BESIDE: dict[Role, tuple[tuple[Access, str], ...]] = {
    Role.ORCHESTRATOR: (("readwrite", "{}/device/+/config"), ("read", "{}/status")),
    # It clears the document of a device that somebody deletes there.
    Role.HOME_ASSISTANT: (("readwrite", "{}/device/+/config"), ("readwrite", "{}/status")),
}
"""Topics outside the table, below the discovery prefix."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of an ACL: a row of the topic table, and the one level of it that is not free.

    `own` names the level that has to be the user's own name; `peer` is the one peer of artifacts.
    """

    access: Access
    topic: str
    own: str | None = None
    peer: str | None = None

    def pattern(self, user: str, topics: Topics) -> str:
        """The topic filter of the line."""
        levels = {} if self.own is None else {self.own: user}
        if self.peer is not None:
            levels["peer"] = self.peer
        return topics.pattern(self.topic, **levels)


_JOBS: tuple[Grant, ...] = (
    # The bare `infer` topic is closed: a job there could name anybody's topic for its answer.
    Grant("write", "infer_311", own="client"),
    Grant("read", "result", own="client"),
)
"""Jobs in one's own name."""

GRANTS: dict[Role, tuple[Grant, ...]] = {
    Role.AGENT: (
        # Read, too: an agent looks whether another one has its name, and hears its own late will.
        Grant("readwrite", "node_state", own="node"),
        Grant("readwrite", "ping", own="node"),
        Grant("readwrite", "report", own="node"),
        Grant("write", "telemetry", own="node"),
        Grant("read", "assignment", own="node"),
        Grant("read", "orchestrator_state"),
        Grant("write", "artifact_want", peer=ORCHESTRATOR),
        Grant("read", "artifact_piece", own="peer"),
        Grant("readwrite", "artifact_probe", own="peer"),
        Grant("readwrite", "activation"),
        Grant("write", "stage_result"),
    ),
    Role.CLIENT: (*_JOBS, *(Grant("read", name) for name in OPEN_TO_ALL)),
    Role.MONITOR: tuple(Grant("read", name) for name in WATCHED),
    Role.HOME_ASSISTANT: tuple(Grant("read", name) for name in WATCHED),
    Role.OPERATOR: (
        *_JOBS,
        *(Grant("read", name) for name in WATCHED),
        Grant("write", "request"),
        Grant("read", "response"),
        Grant("read", "response_own"),
        # What `amp4ec doctor` measures the broker with.
        Grant("readwrite", "artifact_probe", own="peer"),
        # The models it uploads; each piece is checked against its digest by who asked for it.
        Grant("read", "artifact_want"),
        Grant("write", "artifact_piece", peer=ORCHESTRATOR),
    ),
    Role.BRIDGE: tuple(
        Grant(_ACROSS[crossing.direction], crossing.topic, peer=crossing.peer)
        for crossing in CROSSINGS
    ),
}
"""The orchestrator is not in here: it may do everything below the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A name that may log in, and its role. An agent's is its node's name.

    Raises:
        ConfigurationError: the name cannot stand in a topic.
    """

    name: str
    role: Role

    def __post_init__(self) -> None:
        check_name("user", self.name)


def lines(user: User, topics: Topics, discovery: str = HOME_ASSISTANT) -> list[str]:
    """The user's section of an ACL file."""
    beside = [f"topic {may} {form.format(discovery)}" for may, form in _BESIDE.get(user.role, ())]
    if user.role is Role.ORCHESTRATOR:
        return [f"user {user.name}", f"topic readwrite {topics.root}/#", *beside]
    granted = [
        f"topic {grant.access} {grant.pattern(user.name, topics)}" for grant in GRANTS[user.role]
    ]
    return [f"user {user.name}", *granted, *beside]


def render(users: Iterable[User], topics: Topics, discovery: str = HOME_ASSISTANT) -> str:
    """The text of an ACL file, users by name; `discovery` is Home Assistant's prefix.

    Raises:
        ConfigurationError: one name has two roles.
    """
    text = [
        "# Written by `amp4ec broker init` and `amp4ec join-token`; what no line allows is denied."
    ]
    seen: dict[str, Role] = {}
    for user in sorted(users, key=lambda user: user.name):
        if user.name in seen:
            raise ConfigurationError(
                "one name, two roles",
                expected=f"{user.name!r} once",
                got=f"{seen[user.name]} and {user.role}",
            )
        seen[user.name] = user.role
        text += ["", f"# {user.role}", *lines(user, topics, discovery)]
    return "\n".join(text) + "\n"
