"""The decoders of documents: what is served, profiles, cluster files, tokens, addresses, options."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploy.containers.profile import PROFILES, read_profile
from deploy.library import read_labels, read_transform
from deploy.log_lines import parse_line, readable
from deploy.planning import parse_axes
from deploy.profile_report import read_report
from deploy.samples import read_samples
from deploy.settings import load
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import parse_keep_input
from orchestrator.models.source import InputShape, parse_source
from shared.bus import BrokerUrl
from shared.bus.token import Bundle, decode_token, encode_token
from shared.cluster_file import load_cluster
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, GraphError, ProtocolError
from shared.graph import Graph, GraphBuilder, TensorSpec, Value, validate
from shared.manifest import Block, Level, Manifest, WeightsMark
from shared.package import Measured, ModelPackage, read_package
from shared.profile import CutProfile, LeafProfile
from shared.profile_file import load_profile
from shared.transform import IMAGENET
from tests.fuzz.target import Target

_ARRAYS = Path(tempfile.gettempdir()) / f"amp4ec-fuzz-{id(object()):x}.npz"
_EXAMPLES = Path(__file__).parents[2] / "deploy/example"
_FILE = Path(tempfile.gettempdir()) / f"amp4ec-fuzz-{id(object()):x}"


def _log_line(text: str) -> object:
    return parse_line(text), readable(text)


def _graph() -> Graph:
    builder = GraphBuilder("tiny")
    x = builder.input("x", (1, 3, 8, 8))
    weight = builder.weight("w", (4, 3, 3, 3), blob="0" * 64)
    y = builder.node(
        "conv2d", x, weight, None, shape=(1, 4, 6, 6), stride=(1, 1), padding=(0, 0), dilation=(1, 1),
        groups=1,
    )  # fmt: skip
    both = builder.node("concat", (y, y), shape=(1, 8, 6, 6), dim=1)
    return builder.build(builder.node("mean", both, shape=(1, 8), dims=(2, 3), keepdim=False))


def _package() -> ModelPackage:
    manifest = Manifest(
        model="tiny", level=Level.O1, weights=WeightsMark.NONE, graph=_graph(),
        blocks=(Block(0, "a", (0, 1), 10, 432, 100, 0.1, "0" * 64), Block(1, "b", (1, 3), 1, 0, 50, 0.1)),
        cuts=(CutProfile(1, 576, 1),), input_bytes=768, output_bytes=32, preprocess=IMAGENET,
        leaves=(LeafProfile("a", "Conv2d", 5, 0),), labels=("cat", "dog"),
    )  # fmt: skip
    measured = Measured(
        block_seconds=(0.1, 0.2), reference={"matmul": 0.1}, block_shares=((1.0, 0, 0, 0, 0),) * 2
    )
    return ModelPackage(manifest=manifest, measured={"torch": measured}, weights=())


def _packages(_: int) -> list[bytes]:
    whole = _package().to_bytes()
    blob = b'"weights":[{"digest":"' + b"0" * 64 + b'","size":432}]'
    return [whole, whole.replace(b'"weights":[]', blob)]


def _profile(seed: int) -> list[bytes]:
    return [encode_json(_package().profile("torch"))] if seed >= 0 else []


def _validated(data: bytes) -> None:
    validate(decode_json(data, Graph))


_VALUES = (Value("x", TensorSpec("float32", (1, 3))),)


def _samples(data: bytes) -> object:
    _ARRAYS.write_bytes(data)
    return read_samples([_ARRAYS], _VALUES, None)


def _archives(_: int) -> list[bytes]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.ones((4, 3), np.float32))
    return [buffer.getvalue()]


def _words(decode: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: decode(data.decode("utf-8", "surrogateescape"))


def _file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        _FILE.write_bytes(data)
        return read(_FILE)

    return decode


def _address(text: str) -> object:
    # `@FILE` reads a file of the user's own choice: no decoder of bytes.
    return BrokerUrl.parse(text.strip().lstrip("@"))


def _seeds(*given: bytes) -> Callable[[int], list[bytes]]:
    return lambda _: list(given)


_TOKEN = encode_token(Bundle(host="a", port=1, user="u", password="p", ca="x")).encode()
_REFUSED = (ConfigurationError,)
TARGETS = (
    Target(
        name="package", decode=read_package, seeds=_packages, share=2,
        allowed=(ProtocolError, GraphError, ConfigurationError), covers=("shared.package.read_package",),
    ),
    Target(
        name="graph", decode=_validated, allowed=(ProtocolError, GraphError), share=2, covers=(),
        seeds=lambda _: [encode_json(_graph())],
    ),
    Target(
        name="profile", decode=load_profile, allowed=_REFUSED, seeds=_profile,
        covers=("shared.profile_file.load_profile",),
    ),
    Target(
        name="profile-report", decode=read_report, allowed=_REFUSED, seeds=_profile, share=0.5,
        covers=("deploy.profile_report.read_report",),
    ),
    Target(
        name="log-line", decode=_words(_log_line), allowed=(), share=0.5,
        seeds=_seeds(b'{"time":"2026-11-21T22:38:01.123Z","level":"info","logger":"a.b","event":"e","n":[1]}'),
        covers=("deploy.log_lines.parse_line",),
    ),
    Target(
        name="cluster-file", decode=load_cluster, allowed=_REFUSED, share=0.5,
        seeds=lambda _: [(_EXAMPLES / "three-pis.toml").read_bytes()],
        covers=("shared.cluster_file.load_cluster",),
    ),
    Target(
        name="token", decode=_words(decode_token), allowed=_REFUSED, seeds=_seeds(_TOKEN), share=0.5,
        covers=("shared.bus.token.decode_token",),
    ),
    Target(
        name="address", decode=_words(_address), allowed=_REFUSED, share=0.5, covers=(),
        seeds=_seeds(b"mqtt://u:p%40@[::1]:1883", b"mqtts://host?ca=/x&insecure=1", b"host:1"),
    ),
    Target(
        name="goal", decode=_words(parse_goal), allowed=_REFUSED, share=0.5,
        seeds=_seeds(b"latency", b"latency=0.7,cost=0.3"), covers=("orchestrator.core.goal.parse_goal",),
    ),
    Target(
        name="keep-input", decode=_words(parse_keep_input), allowed=_REFUSED, share=0.5,
        seeds=_seeds(b"home", b"home:4", b"home:25%"),
        covers=("orchestrator.core.limits.parse_keep_input",),
    ),
    Target(
        name="axes", decode=_words(parse_axes), allowed=_REFUSED, share=0.2,
        seeds=_seeds(b"latency,throughput,cost"), covers=("deploy.planning.parse_axes",),
    ),
    Target(
        name="model-source", decode=_words(parse_source), allowed=_REFUSED, share=0.2,
        seeds=_seeds(b"resnet18", b"a/b.onnx", b"m.pt2", b"mod.ule:make"),
        covers=("orchestrator.models.source.parse_source",),
    ),
    Target(
        name="input-shape", decode=_words(InputShape.parse), allowed=_REFUSED, share=0.2,
        seeds=_seeds(b"1x3x224x224", b"ids:1x128:int64"), covers=(),
    ),
    Target(
        name="transform", decode=_file(lambda path: read_transform(str(path))), allowed=_REFUSED, share=0.2,
        seeds=lambda _: [encode_json(IMAGENET)], covers=("deploy.library.read_transform",),
    ),
    Target(
        name="samples", decode=_samples, allowed=_REFUSED, seeds=_archives, share=0.2,
        covers=("deploy.samples.read_samples",),
    ),
    Target(
        name="labels", decode=_file(read_labels), allowed=_REFUSED, share=0.2,
        seeds=_seeds(b"cat\ndog\n", b'["cat"]'), covers=("deploy.library.read_labels",),
    ),
    Target(
        name="settings", decode=_file(load), allowed=_REFUSED, share=0.2,
        seeds=_seeds(b'broker = "mqtt://a"\n[agent]\nname = "b"\n'), covers=("deploy.settings.load",),
    ),
    Target(
        name="nodes", decode=_file(read_profile), allowed=_REFUSED, share=0.2,
        seeds=_seeds((PROFILES / "paper.toml").read_bytes()),
        covers=("deploy.containers.profile.read_profile",),
    ),
)  # fmt: skip
