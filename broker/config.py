"""The Mosquitto configuration: every limit chosen, and said why beside it.

Pure: a value in, text out. `broker/mosquitto.conf` is the rendering of the defaults for those who
run a broker of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.bridge import Bridge
from shared.errors import ConfigurationError

_EXPIRATION: Final = re.compile(r"[1-9][0-9]*[hdwmy]")
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The files that close a broker: who it is, who may log in, and what each may do."""

    certificate_file: str
    key_file: str
    password_file: str
    acl_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """What may be chosen about a broker of ours; the rest is in `render`.

    Raises:
        ConfigurationError: for a value that Mosquitto would refuse or misread.
    """

    bind: str = "127.0.0.1"
    """The address to listen on; loopback unless somebody asks for more."""
    port: int = 1883
    websocket_port: int | None = None
    """MQTT over WebSockets; only for a Mosquitto that was built with them."""
    persistence_dir: str | None = "/var/lib/mosquitto/"
    """Where retained messages and sessions live over a restart; None for in memory only."""
    autosave_interval_s: int = 30
    """How much a broker that is killed may forget. A clean stop forgets nothing."""
    max_queued_messages: int = 20_000
    """Messages kept for one client that is away or slow."""
    max_queued_bytes: int = 256 * _MIB
    """The same in bytes: four models' queues at the orchestrator's own bound (orchestrator/QUEUES.md)."""
    max_packet_size: int = 128 * _MIB
    """The largest MQTT packet in bytes, topic and properties included."""
    persistent_client_expiration: str = "7d"
    """When the session of an MQTT 3.1.1 client that never came back is thrown away."""
    log_types: tuple[str, ...] = ("error", "warning", "notice")
    security: Security | None = None
    """TLS, passwords and an ACL; None lets anybody in who reaches the port."""
    pid_file: str | None = None
    """Where it writes its process id, for who has to tell it that the files of `security` changed."""
    bridge: Bridge | None = None
    """The connection to a main broker, which makes this one a branch."""
    user: str | None = None
    """Whom Mosquitto becomes when root starts it; None leaves it at its own choice, `mosquitto`."""

    def __post_init__(self) -> None:
        """Refuse what Mosquitto would refuse or misread."""
        for name, port in (("port", self.port), ("websocket_port", self.websocket_port)):
            if port is not None and not 0 < port < 65_536:
                raise _refused(name, "1 to 65535", port)
        if self.websocket_port == self.port:
            raise _refused("websocket_port", "another port than MQTT's", self.port)
        for name, text in (
            ("bind", self.bind),
            ("persistence_dir", self.persistence_dir),
            ("user", self.user),
            ("pid_file", self.pid_file),
            *(() if self.security is None else _paths(self.security)),
            *(("log_types", log_type) for log_type in self.log_types),
        ):
            # One option is one line: a line break would smuggle in another.
            if text is not None and (not text.strip() or not text.isprintable()):
                raise _refused(name, "a line of printable text", text)
        for name, count in (
            ("autosave_interval_s", self.autosave_interval_s),
            ("max_queued_messages", self.max_queued_messages),
            ("max_queued_bytes", self.max_queued_bytes),
            ("max_packet_size", self.max_packet_size),
        ):
            if count <= 0:
                raise _refused(name, "more than 0 (Mosquitto reads 0 as no limit)", count)
        if _EXPIRATION.fullmatch(self.persistent_client_expiration) is None:
            raise _refused(
                "persistent_client_expiration", "a form like 7d", self.persistent_client_expiration
            )

    def render(self) -> str:
        """The text of a mosquitto.conf."""
        parts = [
            _HEAD,
            self._process(),
            self._limits(),
            self._persistence(),
            self._log(),
            self._listeners(),
            "" if self.bridge is None else self.bridge.render(),
        ]
        return "\n".join(part.strip("\n") + "\n" for part in parts if part)

    def _process(self) -> str:
        text = ""
        if self.user is not None:
            text += f"""
# The files below belong to whoever started this broker.
user {self.user}
"""
        if self.pid_file is not None:
            text += f"""
pid_file {self.pid_file}
"""
        return text

    def _limits(self) -> str:
        # A bridge tells the other side this number as its receive maximum, where 0 is a protocol error;
        # Mosquitto 2.0.11 makes 0 of 65,535, too.
        inflight = 0 if self.bridge is None else 65_534
        return f"""
# QoS 1 messages on their way to one client. 0 sets no limit of the broker's, 65534 is the most that
# a branch can say: an MQTT 5 client says itself how many it takes (its receive maximum), and ours
# do. The default of 20 would stop a client that acknowledges jobs when they are done, and not when
# they arrive, at its twentieth job.
max_inflight_messages {inflight}

# What is kept for one client beyond that, while it is away or slow. Beyond it Mosquitto drops
# without a word, so it is far more than ours let wait: the orchestrator itself bounds jobs at 1,000
# or 64 MiB per model and answers the rest with "overloaded". While it is away its session holds
# what comes, for {self.max_queued_messages:,} small messages or {self.max_queued_bytes // _MIB} MiB.
# Mosquitto 2.0 knows no bound per client: whoever may connect can leave a session behind that
# holds as much, so it is no more than that.
max_queued_messages {self.max_queued_messages}
max_queued_bytes {self.max_queued_bytes}

# Telemetry (QoS 0) is not kept for those who are away: old telemetry is of no use.
queue_qos0_messages false

# The orchestrator refuses jobs above 32 MiB with an answer that says so (too_large). For that such
# a job must get there, also one of 60 MB. Beyond this limit an MQTT 5 client knows by itself not to
# send, and any other is disconnected; the older message_size_limit tells an MQTT 3.1.1 client that
# all is well and drops its message.
max_packet_size {self.max_packet_size}

# Retained messages are the cluster's memory: births, assignments, model states, all at fixed topics
# (per node, per model), each replaced by the next. They are needed.
retain_available true
"""

    def _persistence(self) -> str:
        if self.persistence_dir is None:
            return """
# Nothing survives this broker: retained messages and sessions are in memory only.
persistence false
"""
        directory = self.persistence_dir.rstrip("/") + "/"
        return f"""
# Retained messages and sessions survive a restart. Saved every {self.autosave_interval_s} s and at
# a clean stop (SIGTERM); a broker that is killed forgets what came since.
persistence true
persistence_location {directory}
autosave_interval {self.autosave_interval_s}
autosave_on_changes false

# For sessions of MQTT 3.1.1 clients that do not come back; MQTT 5 clients say it themselves.
persistent_client_expiration {self.persistent_client_expiration}
"""

    def _log(self) -> str:
        lines = "\n".join(f"log_type {name}" for name in self.log_types)
        return f"""
# To standard error, for whoever started the broker. Connections coming and going are notices.
log_dest stderr
{lines}
connection_messages true
log_timestamp true
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

    def _listeners(self) -> str:
        text = f"""
# MQTT 5 and 3.1.1 on the same port. Loopback only, unless told otherwise; who opens it to others
# closes it first: `amp4ec broker init`.
listener {self.port} {self.bind}
protocol mqtt
"""
        if self.security is None:
            text += "allow_anonymous true\n"
        else:
            text += f"""{_tls(self.security)}
# Nobody without a name; what no line of the ACL allows is denied.
allow_anonymous false
password_file {self.security.password_file}
acl_file {self.security.acl_file}
"""
        if self.websocket_port is not None:
            text += f"""
# MQTT over WebSockets, for browsers. Not every Mosquitto is built with them.
listener {self.websocket_port} {self.bind}
protocol websockets
"""
            if self.security is not None:
                text += _tls(self.security)
        return text


def _tls(security: Security) -> str:
    return f"""certfile {security.certificate_file}
keyfile {security.key_file}
tls_version tlsv1.2
"""


_HEAD: Final = """
# Mosquitto for AMP4EC, 2.0 and later. Written by broker/config.py; change it there.

# Answers below 20 KB took 44 ms each with Nagle's algorithm on, 0.3 ms without.
set_tcp_nodelay true

# One set of security settings for all listeners.
per_listener_settings false
"""


def _paths(security: Security) -> list[tuple[str, str]]:
    return [(name, getattr(security, name)) for name in Security.__dataclass_fields__]


def _refused(name: str, expected: str, got: object) -> ConfigurationError:
    return ConfigurationError(
        f"the broker's {name} makes no sense", expected=expected, got=repr(got)
    )
