"""The topic table: every topic of AMP4EC, who writes it, and how.

One table serves the code, the generated PROTOCOL.md and the tests. Everything a person may want to read is
JSON; what may be binary lives under `pipeline/#`, `artifact/#`, `model/+/infer/#` and `result/#`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shared.errors import ConfigurationError, ProtocolError

DEFAULT_ROOT = "amp4ec/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One row of the table; `{name}` stands for one level.

    `vouched_by` says whose word a message needs on a closed cluster: the signature of a role
    (`shared.signing`), or the MAC of its pipeline (`shared.pipeline_mac`).
    """

    name: str
    pattern: str
    sender: str
    receiver: str
    qos: Literal[0, 1]
    retained: bool
    payload: str
    max_bytes: int
    """The largest payload that a reader takes: checked before anything is decoded."""
    text: str
    vouched_by: Literal["orchestrator", "operator", "pipeline"] | None = None


KIB, MIB = 1 << 10, 1 << 20
LARGEST_BYTES = 127 * MIB
"""What our own broker takes: rows that carry tensors have no bound of their own below it."""
VERBS = (
    "serve", "stop", "replan", "plan", "explain", "deployments", "events", "job", "cordon", "drain",
    "uncordon", "set", "info", "health",
)  # fmt: skip
"""What operators can ask for, on `request/{verb}`."""

TABLE: tuple[TopicSpec, ...] = (
    TopicSpec(
        name="node_state",
        pattern="node/{node}/state",
        sender="agent, and its last will",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `NodeState`",
        max_bytes=64 * KIB,
        text="Birth (`online`: incarnation, hardware, runtimes, zone, price, power) or death "
        "(`offline`: left by itself; `lost`: the broker noticed).",
    ),
    TopicSpec(
        name="telemetry",
        pattern="node/{node}/telemetry",
        sender="agent",
        receiver="anybody",
        qos=0,
        retained=False,
        payload="JSON `Telemetry`",
        max_bytes=256 * KIB,
        text="1 Hz: CPU % of what the node may use, memory, network, round trip, queue, stage times.",
    ),
    TopicSpec(
        name="ping",
        pattern="node/{node}/ping",
        sender="orchestrator; an agent that is about to take that name",
        receiver="agent",
        qos=0,
        retained=False,
        payload="JSON `Ping`",
        max_bytes=1 * KIB,
        text="Asks a node that is silent whether it is there; it answers with its report.",
    ),
    TopicSpec(
        name="assignment",
        pattern="node/{node}/assignment",
        sender="orchestrator",
        receiver="agent",
        qos=1,
        retained=True,
        payload="JSON `Assignment`",
        max_bytes=4 * MIB,
        text="The full desired state of that node, never a delta.",
        vouched_by="orchestrator",
    ),
    TopicSpec(
        name="cordon",
        pattern="node/{node}/cordon",
        sender="orchestrator",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `Cordon`",
        max_bytes=4 * KIB,
        text="An operator has taken that node out of plans (`cordon`), or has what it holds moved, too "
        "(`drain`); cleared when it may be used again.",
        vouched_by="orchestrator",
    ),
    TopicSpec(
        name="report",
        pattern="node/{node}/report",
        sender="agent",
        receiver="orchestrator",
        qos=1,
        retained=False,
        payload="JSON `Report`",
        max_bytes=1 * MIB,
        text="Each stage fetching, loading, ready or failed, with the reason.",
    ),
    TopicSpec(
        name="model_state",
        pattern="model/{model}/state",
        sender="orchestrator",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `ModelState`",
        max_bytes=4 * MIB,
        text="The plan in force, its generation, stage table, predicted and measured figures.",
        vouched_by="orchestrator",
    ),
    TopicSpec(
        name="infer",
        pattern="model/{model}/infer",
        sender="client",
        receiver="orchestrator",
        qos=1,
        retained=False,
        payload="image bytes, `.npy`, msgpack tensor(s) or batch, JSON tensor",
        max_bytes=LARGEST_BYTES,
        text="A job. MQTT 5: response topic below `result/`, correlation data, and the user "
        "properties `job`, `deadline_ms`, `accept`, `priority` (0 to 9, 5 unless given: higher goes "
        "first, but for one turn in eight; clients take turns within one priority), "
        "`policy` (`lossless`, or `latest` for cameras: of one client and model only the newest waits, "
        "older ones that wait are answered `superseded`). A client is the level below `result/`.",
    ),
    TopicSpec(
        name="infer_311",
        pattern="model/{model}/infer/{client}/{job}",
        sender="client",
        receiver="orchestrator",
        qos=1,
        retained=False,
        payload="as above",
        max_bytes=LARGEST_BYTES,
        text="A job from an MQTT 3.1.1 client; the answer goes to `result/{client}/{job}`.",
    ),
    TopicSpec(
        name="activation",
        pattern="pipeline/{pipeline}/{generation}/{stage}",
        sender="orchestrator (stage 0) or the stage before",
        receiver="agent",
        qos=1,
        retained=False,
        payload="msgpack `Activation`",
        max_bytes=LARGEST_BYTES,
        text="What a stage takes. The generation in the topic keeps stale stages silent. The job's priority, "
        "where it is not 5, is the user property `priority` here, too.",
        vouched_by="pipeline",
    ),
    TopicSpec(
        name="stage_result",
        pattern="pipeline/{pipeline}/{generation}/result",
        sender="agent",
        receiver="orchestrator",
        qos=1,
        retained=False,
        payload="msgpack `StageResult`",
        max_bytes=LARGEST_BYTES,
        text="What the last stage made, or why a stage could not; of an item that a node may have died of, "
        "also which node begins with it and which has handed it on.",
        vouched_by="pipeline",
    ),
    TopicSpec(
        name="result",
        pattern="result/{client}/{job}",
        sender="orchestrator",
        receiver="client",
        qos=1,
        retained=False,
        payload="JSON `Answer` or `ErrorAnswer`; msgpack on request",
        max_bytes=LARGEST_BYTES,
        text="Answers; any concrete topic below `result/` may be named as response topic.",
    ),
    TopicSpec(
        name="artifact_want",
        pattern="artifact/{peer}/want",
        sender="whoever needs a blob",
        receiver="the peer that has it",
        qos=1,
        retained=False,
        payload="msgpack `Want`",
        max_bytes=4 * KIB,
        text="Asks `peer` for one piece of a blob. The asker sets the pace, so a transfer has a "
        "window and resumes where it stopped.",
    ),
    TopicSpec(
        name="artifact_piece",
        pattern="artifact/{peer}/piece",
        sender="the peer that has it",
        receiver="whoever asked",
        qos=1,
        retained=False,
        payload="msgpack `Piece`",
        max_bytes=4 * MIB + 4 * KIB,
        text="One piece of a blob, with its own SHA-256, or why there is none.",
    ),
    TopicSpec(
        name="artifact_probe",
        pattern="artifact/{peer}/probe",
        sender="agent",
        receiver="the same agent",
        qos=1,
        retained=True,
        payload="random bytes, for some seconds",
        max_bytes=256 * KIB,
        text="What an agent measures its link with: it leaves up to 256 KiB here, fetches them back and "
        "clears the topic; rarely, and only while nothing else moves.",
    ),
    TopicSpec(
        name="request",
        pattern="request/{verb}",
        sender="operator",
        receiver="orchestrator",
        qos=1,
        retained=False,
        payload="JSON with `transaction`",
        max_bytes=4 * MIB,
        text=f"Verbs: {', '.join(f'`{verb}`' for verb in VERBS)}. What cannot be read is answered, too, with "
        "its transaction or none.",
        vouched_by="operator",
    ),
    TopicSpec(
        name="response",
        pattern="response/{verb}",
        sender="orchestrator",
        receiver="operator",
        qos=1,
        retained=False,
        payload="JSON `Response`",
        max_bytes=16 * MIB,
        text="`transaction`, `status` (`progress`, `ok`, `error`), `data`, `error`.",
    ),
    TopicSpec(
        name="response_own",
        pattern="response/{verb}/{asker}",
        sender="orchestrator",
        receiver="operator",
        qos=1,
        retained=False,
        payload="JSON `Response`",
        max_bytes=16 * MIB,
        text="The one response that ends a request, with its correlation data, where the request names this "
        "or `response/{verb}` as its response topic (MQTT 5), as `mosquitto_rr` does; no `progress` then.",
    ),
    TopicSpec(
        name="orchestrator_state",
        pattern="orchestrator/state",
        sender="orchestrator, and its last will",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `OrchestratorState`",
        max_bytes=16 * KIB,
        text="Who leads, under which term, who stands by, and the limits that jobs have to keep. An "
        "orchestrator that would lead claims it here first, with a term above all that it has seen.",
        vouched_by="orchestrator",
    ),
    TopicSpec(
        name="orchestrator_info",
        pattern="orchestrator/info",
        sender="orchestrator",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `OrchestratorInfo`",
        max_bytes=256 * KIB,
        text="Version, verbs, and the settings with their schema. Whoever leads next keeps to what was set.",
        vouched_by="orchestrator",
    ),
    TopicSpec(
        name="health",
        pattern="orchestrator/health",
        sender="orchestrator",
        receiver="anybody",
        qos=1,
        retained=True,
        payload="JSON `Health`",
        max_bytes=1 * MIB,
        text="Whether anything is wrong, and what; when it changes, and as long as `orchestrator/state` is "
        "`online`.",
    ),
    TopicSpec(
        name="orchestrator_beat",
        pattern="orchestrator/beat",
        sender="orchestrator",
        receiver="itself, and orchestrators that stand by",
        qos=0,
        retained=True,
        payload="JSON `Beat`",
        max_bytes=1 * KIB,
        text="Twice a second: the leader's lease, which it renews with each that comes back to it, and which "
        "a standby takes for over when none came for 2 s. A successor that knows a later count than is "
        "retained knows that the broker was killed and has lost what came since it last saved: accepted "
        "jobs too.",
    ),
    TopicSpec(
        name="standby",
        pattern="orchestrator/standby/{standby}",
        sender="an orchestrator that does not lead",
        receiver="the leader, and the other standbys",
        qos=0,
        retained=False,
        payload="JSON `Standby`",
        max_bytes=1 * KIB,
        text="Once a second, and before it claims to lead: who would take over.",
    ),
    TopicSpec(
        name="event",
        pattern="event",
        sender="orchestrator",
        receiver="anybody",
        qos=1,
        retained=False,
        payload="JSON `Happening`",
        max_bytes=1 * MIB,
        text="One line per thing that happened: node joined or left, replanned and why, ...",
    ),
    TopicSpec(
        name="metrics",
        pattern="metrics",
        sender="orchestrator",
        receiver="anybody",
        qos=0,
        retained=False,
        payload="JSON `Metrics`",
        max_bytes=1 * MIB,
        text="1 Hz summary: jobs accepted, answered, refused; queues; throughput; latency.",
    ),
)

SPECS = {spec.name: spec for spec in TABLE}
_LONGEST_LEVEL = 1024
"""Characters: names have 64, a client's own id for its job may have more."""
_HEADER_BYTES = 64 * KIB
"""For a packet's topic and properties: a topic has as many at most, signatures a few hundred."""
_LEVEL = re.compile(r"\{[a-z]+\}")


def check_payload(name: str, payload_bytes: int) -> None:
    """Refuse a payload that is larger than the row `name` allows.

    Raises:
        ProtocolError: it is.
    """
    limit = SPECS[name].max_bytes
    if payload_bytes > limit:
        raise ProtocolError(
            "larger than a message of this topic may be",
            expected=f"at most {limit} bytes",
            got=f"{payload_bytes} bytes",
        )


def largest_packet(names: Iterable[str]) -> int:
    """The largest MQTT packet in bytes of who reads these rows only: what is larger needs not come at all."""
    return max(SPECS[name].max_bytes for name in names) + _HEADER_BYTES


class Topics:
    """The table below one root: builds, subscribes to and takes apart topics."""

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        """Raises ConfigurationError when `root` has wildcards or empty levels."""
        if not root or any(not level or set(level) & set("+#\0") for level in root.split("/")):
            raise ConfigurationError(
                "root topic cannot be used", expected="levels without '+', '#'", got=repr(root)
            )
        self.root = root

    def topic(self, name: str, **levels: str | int) -> str:
        """The concrete topic `name` of the table, such as `topic("telemetry", node="pi-1")`."""
        return f"{self.root}/{SPECS[name].pattern.format(**levels)}"

    def pattern(self, name: str, **levels: str | int) -> str:
        """A subscription to topic `name`; levels that are not given become `+`."""
        spec = SPECS[name].pattern
        return f"{self.root}/" + _LEVEL.sub(lambda m: str(levels.get(m[0][1:-1], "+")), spec)

    @cached_property
    def _parsers(self) -> list[tuple[str, re.Pattern[str]]]:
        # Longest pattern with the most fixed levels first: `pipeline/a/1/result` is not a stage.
        order = sorted(TABLE, key=lambda spec: spec.pattern.count("{"))
        return [
            (
                spec.name,
                re.compile(
                    _LEVEL.sub(
                        lambda m: f"(?P<{m[0][1:-1]}>[^/]{{1,{_LONGEST_LEVEL}}})", spec.pattern
                    )
                ),
            )
            for spec in order
        ]

    def parse(self, topic: str) -> tuple[str, dict[str, str]]:
        """The table's name for `topic`, and its levels.

        Raises:
            ProtocolError: no row of the table has this form.
        """
        prefix = self.root + "/"
        if topic.startswith(prefix):
            rest = topic[len(prefix) :]
            for name, parser in self._parsers:
                match = parser.fullmatch(rest)
                if match:
                    return name, match.groupdict()
        raise ProtocolError("not a topic of the table", expected=f"{prefix}...", got=topic[:200])

    def accept(self, topic: str, payload_bytes: int) -> tuple[str, dict[str, str]]:
        """Like `parse`, for what came: refuses a payload larger than its row allows, unread.

        Raises:
            ProtocolError: no row of the table has this form, or the payload is too large for it.
        """
        name, levels = self.parse(topic)
        check_payload(name, payload_bytes)
        return name, levels

    def client_of(self, topic: str) -> str:
        """Whom an answer on `topic` is for: the level below `result/`; `may_answer_to` must hold."""
        return topic[len(self.root) + len("/result/") :].partition("/")[0]

    def may_respond_to(self, topic: str) -> bool:
        """Whether `topic` is one that a request may name for its response."""
        try:
            name, _ = self.parse(topic)
        except ProtocolError:
            return False
        return name in ("response", "response_own") and not set(topic) & set("+#\0")

    def may_answer_to(self, topic: str) -> bool:
        """Whether `topic` is concrete and below `result/`: all that a job may name for its answer."""
        prefix = f"{self.root}/result/"
        rest = topic[len(prefix) :]
        return (
            topic.startswith(prefix)
            and 0 < len(rest) <= 512
            and not set(rest) & set("+#\0")
            and all(rest.split("/"))
        )
