"""A branch: a second Mosquitto whose own agents and clients belong to the cluster of a main one.

Pure: values in, text out. The branch makes the connection, so it may stand behind a router; orchestrators
and operators are at the main broker. Mosquitto does not ask who subscribes on the other side: what a line
lets cross crosses always, so each row of the topic table crosses in the one direction in which it is
needed, and only activations in both. That is also what keeps retained messages right: each has one side
that writes it, and a reconnection, when Mosquitto sends them again, cannot bring an old one back.

MQTT 5 on the bridge, since properties have to cross: response topics, correlation data, signatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shared.bus.url import BrokerUrl
from shared.errors import ConfigurationError
from shared.ids import ORCHESTRATOR, check_name
from shared.topics import SPECS, Topics

Direction = Literal["in", "out", "both"]
"""As the branch sees it: `out` from the branch to the main broker."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """One row of the topic table that crosses.

    `node` names its level that is a node's name, where only nodes of the branch are meant; `peer` is the
    one peer of artifacts.
    """

    topic: str
    direction: Direction
    node: str | None = None
    peer: str | None = None
    below: str | None = None
    """Everything below this level instead of the row's own form."""

    def patterns(self, topics: Topics, nodes: Sequence[str] = ()) -> Iterator[str]:
        """The topic filters; one for each of `nodes`, where given and where it is about nodes."""
        if self.below is not None:
            yield f"{topics.root}/{self.below}/#"
            return
        fixed = {} if self.peer is None else {"peer": self.peer}
        if self.node is None or not nodes:
            yield topics.pattern(self.topic, **fixed)
            return
        for name in nodes:
            yield topics.pattern(self.topic, **{**fixed, self.node: name})


CROSSINGS: Final = (
    Crossing("node_state", "out", node="node"),
    Crossing("telemetry", "out", node="node"),
    Crossing("report", "out", node="node"),
    Crossing("ping", "in", node="node"),
    Crossing("assignment", "in", node="node"),
    Crossing("artifact_want", "out", peer=ORCHESTRATOR),
    Crossing("artifact_piece", "in", node="peer"),
    # Its pattern takes a pipeline's results along: they are needed at the main broker only.
    Crossing("activation", "both"),
    Crossing("infer", "out"),
    Crossing("infer_311", "out"),
    # A client may name any topic below `result/` for its answer.
    Crossing("result", "in", below="result"),
    Crossing("cordon", "in", node="node"),
    Crossing("model_state", "in"),
    Crossing("orchestrator_state", "in"),
    Crossing("orchestrator_info", "in"),
    Crossing("health", "in"),
    Crossing("event", "in"),
    Crossing("metrics", "in"),
)
COVERED: Final = frozenset({"stage_result"})
"""Rows that cross with another one's pattern."""
STAYS: Final = frozenset(
    # What orchestrators say among themselves, what operators ask of them, and an agent's measurement of
    # its link to its own broker.
    {"orchestrator_beat", "standby", "request", "response", "response_own", "artifact_probe"}
)
"""Rows that do not cross. A row of the table is in one of the three."""

KEEPALIVE_S: Final = 10
"""A cut that nobody announces is noticed after one and a half of these."""
SYSTEM_AUTHORITIES: Final = "/etc/ssl/certs"
"""Whom Mosquitto trusts where the address names no authority: it has no default of its own."""
RECONNECT_S: Final = (1, 10)
"""Between attempts to connect: the first pause, and the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A branch's connection to its main broker.

    Raises:
        ConfigurationError: a value that Mosquitto would misread, or a name that is none.
    """

    remote: BrokerUrl
    """The main broker: an address, or the token of a `bridge` role."""
    root: str
    """The root topic, the same on both."""
    name: str
    """Names the session at the main broker: each branch needs one of its own."""
    nodes: tuple[str, ...] = ()
    """Those of the branch; empty lets cross what is for any node, other branches' transfers included."""
    ca_file: str | None = None
    """Where the PEM text of a token's authority is; needed with a token."""

    def __post_init__(self) -> None:
        check_name("bridge", self.name)
        for node in self.nodes:
            check_name("node", node)
        for what in (self.remote.host, self.remote.username, self.remote.password, self._authority):
            # One option is one line: a line break would smuggle in another, and blanks end a value.
            if what is not None and (not what.isprintable() or what != what.strip() or not what):
                raise ConfigurationError(
                    "the main broker's address cannot stand in a configuration of Mosquitto",
                    expected="host, user, password and file names without line breaks or outer blanks",
                    got=str(self.remote),
                )
        if self.remote.ca_pem is not None and self.ca_file is None:
            raise ConfigurationError(
                "Mosquitto reads the main broker's authority from a file",
                expected="ca_file, with the certificate of the token",
                got="none",
            )

    @property
    def _authority(self) -> str | None:
        return self.ca_file or self.remote.ca_file

    def render(self) -> str:
        """The text for a mosquitto.conf; it holds the password, if there is one."""
        remote, topics = self.remote, Topics(self.root)
        text = f"""
# This broker is a branch: what its agents and clients say to the cluster goes to the main broker,
# and what is for them comes from there. Written by broker/bridge.py.
connection {self.name}
address {remote.host}:{remote.port}
remote_clientid {self.remote.client_id(f"amp4ec-bridge-{self.name}")}
# Properties cross with MQTT 5 only: response topics, correlation data, signatures.
bridge_protocol_version mqttv50
# While the other side is away, messages of QoS 1 wait on both, as for any client.
cleansession false
# What only these two brokers know: whether the bridge stands ($SYS/broker/connection/+/state).
notifications true
notifications_local_only true
keepalive_interval {KEEPALIVE_S}
restart_timeout {RECONNECT_S[0]} {RECONNECT_S[1]}
"""
        if remote.username is not None:
            text += f"remote_username {remote.username}\n"
        if remote.password is not None:
            text += f"remote_password {remote.password}\n"
        if remote.tls:
            text += self._tls()
        text += "# What crosses, as this side sees it, and its QoS.\n"
        for crossing in CROSSINGS:
            for pattern in crossing.patterns(topics, self.nodes):
                text += f"topic {pattern} {crossing.direction} {SPECS[crossing.topic].qos}\n"
        return text

    def _tls(self) -> str:
        text = (
            f"bridge_capath {SYSTEM_AUTHORITIES}\n"
            if self._authority is None
            else f"bridge_cafile {self._authority}\n"
        )
        return text + ("bridge_insecure true\n" if self.remote.insecure else "")
