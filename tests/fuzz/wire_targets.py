"""The decoders of what comes over the bus."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from broker.authority import Authority
from edge_agent.preprocess import check_tensor, decode_npy, preprocess
from edge_agent.stage import Item, Stage, process
from edge_agent.stage_input import StageInputs
from orchestrator.inputs import parse_input
from orchestrator.job_requests import Envelope, open_envelope, read_request
from orchestrator.stage_results import read_result
from shared import packing
from shared.bus import Message, Properties
from shared.bus.mqtt5 import Publish, decode_whole_publish
from shared.bus.mqtt5_reader import PacketReader
from shared.bus.mqtt5_values import BadPacketError
from shared.client.results import read_answer
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.compression import COMPRESSIONS, PackedTensor, pack, unpack
from shared.errors import ForgedError, JobError, ProtocolError
from shared.graph import TensorSpec, Value
from shared.job_options import parse_priority
from shared.messages.artifact import LARGEST_PIECE_BYTES, Piece, Want
from shared.messages.job import (
    Activation,
    Answer,
    BatchAnswer,
    BatchInput,
    ErrorAnswer,
    JsonTensorInput,
    StageResult,
    TensorInput,
    TensorsInput,
)
from shared.messages.model import ModelState
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import (
    Beat,
    ExplainRequest,
    Happening,
    Metrics,
    OrchestratorState,
    PlanRequest,
    ReplanRequest,
    Response,
    ServeRequest,
    StopRequest,
)
from shared.messages.stage import Assignment, Report
from shared.signing import Verifier, signer_of
from shared.tensor import from_wire
from shared.topics import SPECS, TABLE, Topics
from shared.transform import Transform
from tests.fakes.hostile import connect_packet, packet, publish_packet, text, user_property
from tests.fuzz.target import Target
from tests.fuzz.values import draw, values

JSON_MESSAGES: tuple[Any, ...] = (
    NodeState, Telemetry, Assignment, Report, ModelState, ServeRequest, StopRequest, ReplanRequest,
    ExplainRequest, PlanRequest, Response, OrchestratorState, Beat, Happening, Metrics, JsonTensorInput,
    Answer, ErrorAnswer, BatchAnswer,
)  # fmt: skip
MSGPACK_MESSAGES: tuple[Any, ...] = (
    Activation, StageResult, Want, Piece, TensorInput, TensorsInput, BatchInput, Answer, ErrorAnswer,
    BatchAnswer,
)  # fmt: skip
TOPICS = Topics()
SPEC = TensorSpec("float32", (1, 3, 8, 8))
TRANSFORM = Transform(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def _selected(kinds: tuple[Any, ...], data: bytes) -> tuple[Any, bytes]:
    return kinds[data[0] % len(kinds)] if data else kinds[0], data[1:]


def _json(data: bytes) -> object:
    type_, rest = _selected(JSON_MESSAGES, data)
    return decode_json(rest, type_)


def _msgpack(data: bytes) -> object:
    type_, rest = _selected(MSGPACK_MESSAGES, data)
    message = decode_msgpack(rest, type_)
    if isinstance(message, Activation | StageResult):
        for tensor in message.tensors.values():
            from_wire(tensor)
    if isinstance(message, StageResult):
        read_result(message)
    return message


def _packed(data: bytes) -> object:
    """A compressed tensor, as a stage unpacks it: of a size that its graph says."""
    return unpack(decode_msgpack(data, PackedTensor), most_bytes=1 << 16)


def _packed_tensors(seed: int) -> list[bytes]:
    random = np.random.default_rng(seed)
    array = np.maximum(random.standard_normal((1, 4, 8, 8)), 0).astype(np.float32)
    last = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    sent = [pack(each, how) for each in (array, last) for how in COMPRESSIONS]
    return [bytes(encode_msgpack(each)) for each in sent if isinstance(each, PackedTensor)]


def _messages(kinds: tuple[Any, ...], encode: Any, seed: int) -> list[bytes]:
    made: list[bytes] = []
    for index, type_ in enumerate(kinds):
        made += [bytes((index,)) + bytes(encode(v)) for v in draw(values(type_), 6, seed + index)]
    return made


def _stream(data: bytes) -> object:
    """A connection's bytes, received in pieces whose sizes the first byte decides."""
    reader, packets, view = PacketReader(1 << 16, 64), 0, memoryview(data)[1:]
    most = data[0] + 1 if data else 1
    while view:
        space = reader.space()
        count = min(len(space), len(view), most)
        space[:count] = view[:count]
        view = view[count:]
        reader.filled(count)
        while reader.next() is not None:
            packets += 1
    return packets


def _packets(_: int) -> list[bytes]:
    every = b"".join(
        (
            b"\x01\x02\x03\x03abc", b"\x08" + text(b"r/1"), b"\x09" + text(b"\x00\xff"),
            user_property(b"job", b"7"), b"\x02\x00\x00\x00\x3c", b"\x01\x01",
        )
    )  # fmt: skip
    whole = [
        publish_packet("amp4ec/v1/event", b"x"),
        publish_packet("a/b", b"payload", properties=every[7:], qos=1),
        publish_packet("a", bytes(300), properties=user_property(b"a") * 20, retain=True),
        packet(0x20, b"\x01\x00" + b"\x0b\x21\x00\x0a\x27\x00\x01\x00\x00\x24\x01"[:1] + bytes(11)),
        packet(0x40, b"\x00\x07"), packet(0x40, b"\x00\x07\x10\x00"), packet(0x90, b"\x00\x01\x00\x01"),
        packet(0xB0, b"\x00\x01\x00\x00"), b"\xd0\x00", packet(0xE0, b"\x8e\x00"),
        connect_packet(b"me"), b"\xff\xff\xff\xff\x7f", b"\x30\xff\xff\xff\xff",
    ]  # fmt: skip
    return [b"\xff" + each for each in whole] + [b"\x02" + b"".join(whole[:10])]


def _publish(data: bytes) -> Publish:
    return decode_whole_publish(data[0] if data else 0x30, data[1:])


def _publishes(seed: int) -> list[bytes]:
    return [each[1:2] + each[3:] for each in _packets(seed) if each[1:2] in (b"\x30", b"\x32")]


def _topic(data: bytes) -> object:
    topic = f"{TOPICS.root}/{data[2:].decode('utf-8', 'replace')}"
    name, levels = TOPICS.accept(topic, int.from_bytes(data[:2], "big") << 8)
    assert levels.keys() == {part[1:-1] for part in SPECS[name].pattern.split("/") if "{" in part}
    return TOPICS.may_answer_to(topic) and TOPICS.client_of(topic)


def _topics(_: int) -> list[bytes]:
    return [b"\x00\x01" + spec.pattern.encode() for spec in TABLE]


def _input(data: bytes) -> object:
    kind = (None, "image/jpeg", "application/msgpack", "application/json", "text/plain", "?")
    return parse_input(data[1:], kind[data[0] % len(kind)] if data else None, ("x",))


def _inputs(seed: int) -> list[bytes]:
    tensor = {"dtype": "float32", "shape": [1, 2], "data": bytes(8)}
    bodies = [bytes(encode_msgpack(each)) for each in (tensor, {"tensors": {"x": tensor}})]
    bodies += [bytes(encode_msgpack({"images": [b"\xff\xd8\xff", b""]})), *_images(seed)[:3]]
    bodies.append(b'{"dtype": "int8", "shape": [2, 1], "data": [[1], [2]]}')
    return [bytes((kind,)) + body for body in bodies for kind in range(5)]


def _request(data: bytes) -> object:
    """Anything that a client may put into a job's properties; it answers, and raises nothing."""
    parts = data.split(b"\xfe")
    words = [part.decode("utf-8", "replace") for part in [*parts, *[b""] * 9]][:9]
    properties = Properties(
        response_topic=words[0] or None,
        correlation_data=parts[1] if len(parts) > 1 else None,
        content_type=words[2] or None,
        user=(("priority", words[3]), ("policy", words[4]), ("deadline_ms", words[5]), ("job", words[6]))
        if words[8]
        else (),
        expiry_s=len(data) % 7 or None,
    )  # fmt: skip
    message = Message(f"{TOPICS.root}/model/m/infer", parts[-1], 1, False, False, properties)
    envelope = open_envelope(TOPICS, message, "infer", {"model": "m"}, "r1")
    if not isinstance(envelope, Envelope):
        return envelope
    return read_request(
        1.0, message, envelope, "r1", input_names=("x",), max_item_bytes=1 << 20, delivery=1
    )


def _requests(_: int) -> list[bytes]:
    rest = b"\xfe".join(
        (b"c", b"image/png", b"5", b"latest", b"100", b"job-1", b"", b"y", b"\x89PNG")
    )
    return [b"amp4ec/v1/result/me/1\xfe" + rest, b"\xfe" + rest, b"amp4ec/v1/result/a\xfe\xff"]


def _answers(seed: int) -> list[bytes]:
    made = [*draw(values(Answer), 6, seed), *draw(values(ErrorAnswer), 6, seed)]
    encoded = [bytes(encode(each)) for each in made for encode in (encode_json, encode_msgpack)]
    batch = {"job": "j", "model": "m", "status": "ok", "latency_ms": 1.0}
    return [
        *encoded,
        *(bytes(encode_msgpack(batch | {"results": [decode_json(e, dict)]})) for e in encoded[::2]),
    ]


def _images(_: int) -> list[bytes]:
    picture = Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3))
    made: list[bytes] = []
    for form, how in (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}),
        ("WEBP", {"lossless": True}), ("WEBP", {}),
        ("PNG", {"exif": b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00"}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, form, **how)
        made.append(buffer.getvalue())
    for mode in ("L", "LA", "P", "1", "I;16", "CMYK"):
        buffer = io.BytesIO()
        odd = Image.new(mode, (5, 7))
        odd.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        made.append(buffer.getvalue())
    return made


def _image(data: bytes) -> object:
    return preprocess(data, TRANSFORM)


def _npy(data: bytes) -> object:
    return check_tensor(decode_npy(data), SPEC)


def _npys(_: int) -> list[bytes]:
    made: list[bytes] = []
    for array in (
        np.zeros(SPEC.shape, np.float32),
        np.zeros((2, 3), ">i2", order="F"),
        np.float64(1),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        made.append(buffer.getvalue())
    return made


class _Runner:
    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(inputs)

    def unload(self) -> None:
        """Nothing is held."""


def _stage(*, first: bool) -> Stage:
    return Stage(
        life=1, node="n", model="m", pipeline="p", generation=1, index=0 if first else 1, num_stages=2,
        topic="t", next_topic="u", result_topic="r", runner=_Runner(),
        inputs=StageInputs((Value("x", SPEC),), TRANSFORM, first=first),
    )  # fmt: skip


_STAGES = (_stage(first=True), _stage(first=False))


def _activation(data: bytes) -> object:
    """What an agent does with anything on a stage's topic: it answers, and raises nothing."""
    stage = _STAGES[data[0] & 1 if data else 0]
    return process(stage, Item(data[1:], time.monotonic()), lambda *_: None)


def _activations(seed: int) -> list[bytes]:
    tensor = {"dtype": "float32", "shape": list(SPEC.shape), "data": bytes(SPEC.nbytes)}
    base = {"job": "j", "item": 0, "attempt": 1}
    empty = {"dtype": "int8", "shape": [0, 2**62, 2**62], "data": b""}
    given = [base | {"tensors": {"x": each}} for each in (tensor, empty)]
    given += [
        base | {"body": body, "content_type": ""} for body in (*_images(seed)[:4], *_npys(seed))
    ]
    made = [bytes(encode_msgpack(each)) for each in (*given, *draw(values(Activation), 8, seed))]
    return [bytes((index,)) + each for each in made for index in (0, 1)]


_AUTHORITY = Authority.generate()
_VERIFIER = Verifier(_AUTHORITY.public)
_TOPIC = "amp4ec/v1/node/a/assignment"


def _signature(data: bytes) -> object:
    """Whoever is not the authority's signer is refused, whatever the user properties say."""
    words = data.decode("utf-8", "replace").split("\n")
    user = tuple(zip(words[::2], words[1::2], strict=False))
    return _VERIFIER.check(Message(_TOPIC, b"x", properties=Properties(user=user)), "orchestrator")


def _signatures(_: int) -> list[bytes]:
    signer = signer_of(_AUTHORITY.credentials("o", "orchestrator"))
    assert signer is not None
    said = signer.sign(_TOPIC, b"x", 1).user
    return ["\n".join(word for pair in said for word in pair).encode()]


def _priority(data: bytes) -> object:
    return parse_priority(data.decode("latin-1"))


CODEC = ("shared.codec.decode_json", "shared.codec.decode_msgpack", "shared.tensor.from_wire")


def _piece(data: bytes) -> object:
    """The first byte is the width."""
    return packing.unpack(data[1:], data[0] if data else 0, LARGEST_PIECE_BYTES)


def _pieces(seed: int) -> list[bytes]:
    source = np.random.default_rng(seed)
    raw = (b"abcd" * 50, source.normal(size=200).astype("<f4").tobytes())
    packed = [packing.pack(data, 1.0) for data in raw]
    return [bytes((each.width,)) + each.data for each in packed if each is not None] + [
        b"",
        b"\x04",
    ]


TARGETS = (
    Target(
        name="json-messages", decode=_json, allowed=(ProtocolError,), covers=CODEC[:1], share=8, guided=False,
        seeds=lambda seed: _messages(JSON_MESSAGES, encode_json, seed),
    ),
    Target(
        name="msgpack-messages", decode=_msgpack, allowed=(ProtocolError,),
        covers=(*CODEC[1:], "orchestrator.stage_results.read_result"), share=8,
        seeds=lambda seed: _messages(MSGPACK_MESSAGES, encode_msgpack, seed),
    ),
    Target(
        name="compressed-tensors", decode=_packed, allowed=(ProtocolError,), seeds=_packed_tensors, share=3,
        covers=("shared.compression.unpack",),
    ),
    Target(
        name="packed-pieces", decode=_piece, allowed=(ProtocolError,), seeds=_pieces, share=2,
        covers=("shared.packing.unpack",),
    ),
    Target(
        name="mqtt-stream", decode=_stream, allowed=(BadPacketError,), seeds=_packets, share=3,
        covers=("shared.bus.mqtt5.decode_publish", "shared.bus.mqtt5.decode_control"),
    ),
    Target(
        name="mqtt-publish", decode=_publish, allowed=(BadPacketError,), seeds=_publishes, share=2,
        covers=("shared.bus.mqtt5.decode_whole_publish",),
    ),
    Target(name="topics", decode=_topic, allowed=(ProtocolError,), seeds=_topics, covers=()),
    Target(
        name="job-inputs", decode=_input, allowed=(JobError,), seeds=_inputs, share=2,
        covers=("orchestrator.inputs.parse_input",),
    ),
    Target(
        name="job-requests", decode=_request, allowed=(), seeds=_requests, share=2,
        covers=("orchestrator.job_requests.read_request",),
    ),
    Target(
        name="answers", decode=read_answer, allowed=(ProtocolError,), seeds=_answers,
        covers=("shared.client.results.read_answer",),
    ),
    Target(name="images", decode=_image, allowed=(JobError,), seeds=_images, covers=()),
    Target(
        name="npy", decode=_npy, allowed=(JobError,), seeds=_npys,
        covers=("edge_agent.preprocess.decode_npy",),
    ),
    Target(
        name="signatures", decode=_signature, allowed=(ForgedError,), seeds=_signatures, covers=()
    ),
    Target(name="activations", decode=_activation, allowed=(), seeds=_activations, covers=()),
    Target(
        name="priority", decode=_priority, allowed=(), share=0.2,
        seeds=lambda _: [b"5", b"10", b""], covers=("shared.job_options.parse_priority",),
    ),
)  # fmt: skip
