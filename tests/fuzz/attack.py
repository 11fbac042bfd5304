"""Hostile messages on every topic of the table, from a seed.

The cluster under attack is open: on it a forged but valid control message of a real node would be obeyed,
as from whoever else may publish there (a closed broker stops those). So what would still be valid goes to
invented nodes, models and jobs, or is of an earlier life; all that is not valid may go anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.bus import Message
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.errors import ProtocolError
from shared.messages.job import Activation, StageResult
from shared.topics import SPECS, TABLE, Topics
from tests.fakes.hostile import text, user_property
from tests.fuzz.mutate import mutations

_CONTROL = frozenset(
    spec.name for spec in TABLE if spec.payload.startswith("JSON") and spec.name != "infer"
)
"""Rows that somebody obeys, or at least shows."""
_LEVELS = sorted({level for spec in TABLE for level in re.findall(r"\{(\w+)\}", spec.pattern)})
_ODD = (
    "x" * 200,
    "x" * 2000,
    "..",
    "%s",
    "a b",
    "é",
    "\U0001f600",
    "-1",
    "0",
    "99999999999999999999",
)
_HUGE_BYTES = (70_000, 300_000, 1_200_000, 5_000_000)


@dataclass(frozen=True, slots=True)
class Shot:
    """One hostile message; `kind` is what it is counted under, `properties` are raw bytes."""

    kind: str
    topic: str
    payload: bytes
    properties: bytes = b""
    qos: int = 0
    retain: bool = False


class Attack:
    """Makes shots, the same for the same seed and recording.

    Args:
        topics: the cluster's.
        recorded: real messages, by row of the table.
        images: files that a job may have.
        seed: of all chance.
    """

    def __init__(
        self,
        topics: Topics,
        recorded: Mapping[str, Sequence[Message]],
        images: Sequence[bytes],
        seed: int,
    ) -> None:
        self._topics = topics
        self._recorded = {name: list(messages) for name, messages in recorded.items() if messages}
        self._images = list(images)
        self._chance = random.Random(seed)
        self._mutated: dict[str, Iterator[bytes]] = {
            name: mutations([bytes(m.payload) for m in messages], seed)
            for name, messages in self._recorded.items()
        }
        self._retained: set[str] = set()
        self._kinds: tuple[tuple[int, Callable[[], Shot]], ...] = (
            (20, self._mutation), (14, self._wrong_kind), (8, self._noise), (6, self._empty),
            (2, self._huge), (12, self._stale), (8, self._invented_birth), (8, self._invented_telemetry),
            (8, self._activation), (8, self._result), (8, self._artifact), (8, self._request), (8, self._job),
            (4, self._properties),
        )  # fmt: skip

    @property
    def retained(self) -> set[str]:
        """The topics with a retained message of ours, to be cleared in the end."""
        return self._retained

    def shots(self) -> Iterator[Shot]:
        """Without end."""
        weights = [weight for weight, _ in self._kinds]
        makers = [maker for _, maker in self._kinds]
        while True:
            shot = self._chance.choices(makers, weights)[0]()
            if shot.retain and shot.payload:
                self._retained.add(shot.topic)
            yield shot

    # --- where

    def _invented(self, name: str) -> str:
        levels: dict[str, str | int] = {
            level: self._chance.choice(_ODD)
            if self._chance.random() < 0.2
            else f"evil-{self._chance.randrange(5000)}"
            for level in _LEVELS
        }
        return self._topics.topic(name, **levels)

    def _real(self, name: str) -> str:
        messages = self._recorded.get(name)
        return self._chance.choice(messages).topic if messages else self._invented(name)

    def _shot(
        self, kind: str, name: str, topic: str, payload: bytes, properties: bytes = b""
    ) -> Shot:
        """Somewhere that nobody obeys it, where it may still be valid."""
        if name in _CONTROL and _may_be_valid(payload):
            if "{" in SPECS[name].pattern and _is_whole(payload):
                topic, payload = self._invented(name), _renamed(payload)
            else:
                payload = payload.rstrip()[
                    :-1
                ]  # there is but one of its kind, or it cannot be renamed
        # Nothing retained where real things are: only the retained flag of a job is of interest there.
        retain = "evil-" in topic and self._chance.random() < 0.1
        return Shot(kind, topic, payload, properties, self._chance.randrange(2), retain)

    def _row(self) -> str:
        return self._chance.choice(TABLE).name

    # --- what

    def _mutation(self) -> Shot:
        name = self._chance.choice(list(self._recorded))
        payload = next(self._mutated[name])
        if name in ("activation", "stage_result"):
            payload = _of_no_job(payload)
        return self._shot("mutated", name, self._real(name), payload)

    def _wrong_kind(self) -> Shot:
        name, other = self._row(), self._chance.choice(list(self._recorded))
        payload = bytes(self._chance.choice(self._recorded[other]).payload)
        if other in ("activation", "stage_result"):
            payload = _of_no_job(payload)
        return self._shot("wrong kind", name, self._real(name), payload)

    def _noise(self) -> Shot:
        name = self._row()
        payload = self._chance.randbytes(self._chance.choice((1, 5, 50, 3000)))
        return self._shot("noise", name, self._real(name), payload)

    def _empty(self) -> Shot:
        name = self._row()
        # Empty and retained would clear what is real, which is an order, too.
        return Shot("empty", self._real(name), b"", qos=1)

    def _huge(self) -> Shot:
        name = self._row()
        size = self._chance.choice(_HUGE_BYTES)
        payload = self._chance.choice((b"[", b"\x91", b"\x00", b"{}")) * size
        return self._shot("huge", name, self._real(name), payload[:size])

    def _stale(self) -> Shot:
        """Valid words of an earlier life, on the real topic: late wills, old telemetry, old reports."""
        name = self._chance.choice(("node_state", "telemetry", "report"))
        if name not in self._recorded:
            return self._noise()
        message = self._chance.choice(self._recorded[name])
        if not message.payload:
            return self._noise()
        said = decode_json(message.payload, dict[str, Any])
        said["incarnation"] = max(0, said["incarnation"] - self._chance.randrange(1, 10**9))
        if name == "node_state":
            said["state"] = self._chance.choice(("lost", "offline", "online"))
        # Retained it would be what who comes later believes.
        return Shot("stale", message.topic, encode_json(said), qos=1)

    def _invented_birth(self) -> Shot:
        node = f"evil-{self._chance.randrange(100_000)}"
        born = {
            "state": self._chance.choice(("online", "lost", "offline")), "node": node, "v": 1,
            "incarnation": self._chance.randrange(2**50), "runtimes": {},
            "zone": "x" * self._chance.randrange(40),
            "hardware": {"cpu": 1.0, "cores": 1, "memory_bytes": 10**9, "architecture": "evil"},
        }  # fmt: skip
        topic = self._topics.topic("node_state", node=node)
        retain = self._chance.random() < 0.05
        return Shot("invented node", topic, encode_json(born), qos=1, retain=retain)

    def _invented_telemetry(self) -> Shot:
        node = f"evil-{self._chance.randrange(100_000)}"
        said = {
            "node": node, "incarnation": 1, "uptime_s": 1e9, "cpu_percent": 1e18,
            "memory_used_bytes": 2**62, "memory_limit_bytes": 0, "network_received_bytes": 0,
            "network_sent_bytes": 0, "round_trip_s": None, "queue": 2**40, "stability": 7.0,
        }  # fmt: skip
        return Shot("invented node", self._topics.topic("telemetry", node=node), encode_json(said))

    def _activation(self) -> Shot:
        shape = self._chance.choice(
            ([1, 3], [0], [2**31, 2**31], [-1, -2], [1] * 9, [1, 3, 224, 224], [])
        )
        tensor = {
            "dtype": self._chance.choice(("float32", "float64", "object", "int8", "")), "shape": shape,
            "data": bytes(self._chance.choice((0, 4, 12, 602_112))),
            "layout": self._chance.choice(("contiguous", "channels_last")),
        }  # fmt: skip
        body = self._chance.choice(
            (None, b"", *self._images, b"\x93NUMPY\x01\x00", b"\xff\xd8\xff\xda")
        )
        message = {
            "job": f"evil-{self._chance.randrange(10**6)}", "item": 0, "attempt": 1,
            "tensors": {self._chance.choice(("x", "y")): tensor}, "body": body, "watched": True,
        }  # fmt: skip
        return Shot("activation", self._real("activation"), bytes(encode_msgpack(message)), qos=1)

    def _result(self) -> Shot:
        """Results for jobs that were answered long ago, or never were."""
        messages = self._recorded.get("stage_result")
        if not messages or self._chance.random() < 0.5:
            topic = self._real("stage_result")
            failure = {"code": "bad_input", "message": "x" * 300}
            said = {
                "job": f"evil-{self._chance.randrange(10**6)}",
                "item": 2**40,
                "attempt": 1,
                "failure": failure,
            }
            return Shot("result", topic, bytes(encode_msgpack(said)), qos=1)
        message = self._chance.choice(messages)
        return Shot("repeated result", message.topic, bytes(message.payload), qos=1)

    def _artifact(self) -> Shot:
        peer = self._chance.choice(("orchestrator", "agent-1", "agent-2", "evil-1"))
        digest = self._chance.choice(("0" * 64, "f" * 64, "../../etc/passwd", "0" * 63 + "\n"))
        if self._chance.random() < 0.5:
            want = {
                "digest": digest,
                "offset": self._chance.choice((0, 2**62)),
                "length": 4 << 20,
                "reply": "evil",
            }
            topic = self._topics.topic("artifact_want", peer=peer)
            return Shot("artifact", topic, bytes(encode_msgpack(want)), qos=1)
        pieces = self._recorded.get("artifact_piece")
        if pieces and self._chance.random() < 0.5:
            real = decode_msgpack(self._chance.choice(pieces).payload, dict[str, Any])
            digest = real["digest"]
        piece = {
            "digest": digest,
            "offset": 0,
            "size": 2**62,
            "data": bytes(100),
            "sha256": bytes(32),
        }
        topic = self._topics.topic("artifact_piece", peer=peer)
        return Shot("artifact", topic, bytes(encode_msgpack(piece)), qos=1)

    def _request(self) -> Shot:
        model = f"evil-{self._chance.randrange(50)}"
        blob = {
            "digest": f"{self._chance.randrange(16**8):064x}",
            "size": self._chance.choice((1, 2**62)),
        }
        said: dict[str, Any] = {
            "transaction": f"evil-{self._chance.randrange(10**6)}",
            "model": model,
        }
        verb = self._chance.choice(
            ("serve", "stop", "replan", "explain", "plan", "deployments", "dance")
        )
        if verb in ("serve", "plan"):
            said |= {"manifest": blob, "provider": "evil"}
        if verb == "serve":
            said |= {"blobs": [blob] * self._chance.randrange(20), "timeout_s": 1.0}
        return Shot("request", self._topics.topic("request", verb=verb), encode_json(said), qos=1)

    def _job(self) -> Shot:
        client = f"evil-{self._chance.randrange(500)}"
        model = self._chance.choice((*self._models(), "evil"))
        reply = self._chance.choice((f"{client}/1", "", "a//b", "+", f"{client}/" + "x" * 600))
        body = self._chance.choice(
            (
                b"", b"text", b"\xff\xd8\xff", *(image[: len(image) // 2] for image in self._images),
                bytes(encode_msgpack({"images": [b""] * 1025})),
                bytes(encode_msgpack({"images": [b"x"] * 3})),
                b'{"dtype": "float32", "shape": [1], "data": ' + b"[" * 50_000,
                bytes(encode_msgpack({"dtype": "float32", "shape": [2**40, 0], "data": b""})),
            )
        )  # fmt: skip
        properties = b"\x08" + text(f"{self._topics.root}/result/{reply}".encode())
        properties += user_property(b"priority", b"99") if self._chance.random() < 0.1 else b""
        properties += b"\x09" + text(bytes(self._chance.choice((0, 8, 5000))))
        topic = self._topics.topic("infer", model=model)
        # A retained job is dropped, and would come again with each connection.
        return Shot("job", topic, body, properties, 1)

    def _properties(self) -> Shot:
        properties = self._chance.choice(
            (
                user_property("\ufeff".encode()), b"\x01\x02", user_property(b"") * 30_000,
                b"\x02\x00\x00\x00\x00",
                b"\x03" + text("\ufeff".encode()), b"\x08" + text(b"+/#"), b"\x23\x00\x01",
            )
        )  # fmt: skip
        name = self._row()
        return self._shot("properties", name, self._real(name), b"x", properties)

    def _models(self) -> set[str]:
        messages = self._recorded.get("model_state", ())
        return {self._topics.parse(message.topic)[1]["model"] for message in messages}


@dataclass(frozen=True, slots=True)
class _Anything:
    """What any object reads as whose values nobody looks at."""


def _may_be_valid(payload: bytes) -> bool:
    """Whether somebody may read this who passes over fields that he does not know."""
    return _reads_as(payload, _Anything)


def _is_whole(payload: bytes) -> bool:
    """Whether all of its values can be read."""
    return _reads_as(payload, dict)


def _reads_as(payload: bytes, type_: type) -> bool:
    try:
        decode_json(payload, type_)
    except ProtocolError:
        return False
    return True


def _renamed(payload: bytes) -> bytes:
    """An order for nobody: what it is about exists nowhere."""
    said = decode_json(payload, dict[str, Any])
    for field in ("node", "model", "provider"):
        if field in said:
            said[field] = "evil-0"
    if "runtimes" in said:
        said["runtimes"] = {}
    if "incarnation" in said and "limits" in said:
        said["incarnation"] = 0
    return encode_json(said)


def _of_no_job(payload: bytes) -> bytes:
    """The same for a job that nobody has: a stage's word about a real one is believed."""
    for type_ in (Activation, StageResult):
        try:
            decode_msgpack(payload, type_)
            said = decode_msgpack(payload, dict[str, Any])
        except ProtocolError:
            continue
        return bytes(encode_msgpack(said | {"job": "evil-job"}))
    return payload
