"""The images of broker, orchestrator and agents: built when they are missing or our code has changed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

from docker import DockerClient
from docker.errors import APIError, ImageNotFound
from docker.models.images import Image as DockerImage

from broker.config import BrokerConfig
from deploy.containers.engine import IMAGE, EngineError, asking
from deploy.containers.wheels import Target, dependencies, own_wheel, source_digest
from shared.errors import ConfigurationError

FILES: Final = Path(__file__).parents[1] / "images"
# "localhost" is no registry: what is missing is never looked for in somebody else's name.
BASE: Final = "localhost/amp4ec-base"
MOSQUITTO_BASE: Final = "localhost/amp4ec-mosquitto-base"
PUBLIC_BASE: Final = "python:3.11-slim-bookworm"
PUBLIC_MOSQUITTO_BASE: Final = "eclipse-mosquitto:2"
BROKER_CONFIG: Final = BrokerConfig(bind="0.0.0.0", persistence_dir="/var/lib/amp4ec/")  # noqa: S104
"""In its container; who reaches it from outside is the network's business."""


class AgentKind(StrEnum):
    """What an agent's image can run stages with."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"
    BOTH = "both"


_EXTRAS: Final = {
    AgentKind.ONNXRUNTIME: "agent,onnx",
    AgentKind.TORCH: "agent,torch",
    AgentKind.BOTH: "agent,onnx,torch",
}
# The orchestrator plans and hands bytes on; graphs are the business of who serves a model, and of agents.
_ORCHESTRATOR_EXTRAS: Final = "agent,web"
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image of ours; `own_bytes` is what it has on top of its base."""

    name: str
    id: str
    size_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class Images:
    """What a cluster is started from."""

    broker: Image
    orchestrator: Image
    agent: Image


def ensure_images(
    client: DockerClient,
    kind: AgentKind = AgentKind.ONNXRUNTIME,
    *,
    base: str | None = None,
    broker_base: str | None = None,
    on_step: Step = lambda _: None,
) -> Images:
    """The three images, built from what is here now where they are not yet.

    Args:
        client: the engine.
        kind: what agents are to run stages with.
        base: the image with Debian and Python 3.11 or later to build upon; None for the one that
            `deploy/images/base.sh` makes where it is there, else the public one.
        broker_base: the same with Mosquitto.
        on_step: gets what is being done.

    Raises:
        ConfigurationError: there is no base image, or wheels cannot be collected.
        EngineError: a build fails.
    """
    python = _base(client, base, BASE, PUBLIC_BASE, on_step)
    mosquitto = _base(client, broker_base, MOSQUITTO_BASE, PUBLIC_MOSQUITTO_BASE, on_step)
    builder = _Builder(client, source_digest(), on_step)
    return Images(
        broker=builder.broker(mosquitto),
        orchestrator=builder.python("orchestrator", "latest", _ORCHESTRATOR_EXTRAS, python),
        agent=builder.python("agent", kind.value, _EXTRAS[kind], python),
    )


def remove_images(client: DockerClient) -> int:
    """Remove every image that was built here; base images stay. How many there were.

    Raises:
        EngineError: one is in use.
    """
    with asking("images cannot be removed"):
        images = client.images.list(filters={"label": IMAGE})
        for image in images:
            image.remove(force=True)
    return len(images)


class _Builder:
    def __init__(self, client: DockerClient, source: str, on_step: Step) -> None:
        self._client = client
        self._source = source
        self._on_step = on_step

    def broker(self, base: DockerImage) -> Image:
        config = BROKER_CONFIG.render().encode()
        healthy = (FILES / "healthy").read_bytes()
        digest = _digest(base.id, config, healthy, (FILES / "broker.Dockerfile").read_bytes())
        found = self._find("localhost/amp4ec-broker", "latest", digest, base)
        if found is not None:
            return found
        self._on_step("building the broker's image")
        with tempfile.TemporaryFile() as context:
            _pack(
                context,
                {
                    "Dockerfile": FILES / "broker.Dockerfile",
                    "healthy": FILES / "healthy",
                    "mosquitto.conf": config,
                },
            )
            return self._build("localhost/amp4ec-broker", "latest", digest, base, context)

    def python(self, role: str, tag: str, extras: str, base: DockerImage) -> Image:
        name = f"localhost/amp4ec-{role}"
        digest = _digest(base.id, self._source, role, extras)
        found = self._find(name, tag, digest, base)
        if found is not None:
            return found
        target = self._target(base)
        with tempfile.TemporaryDirectory(prefix="amp4ec-image-") as scratch:
            self._on_step("making our own wheel")
            wheel = own_wheel(Path(scratch))
            self._on_step(f"collecting wheels of amp4ec[{extras}] for {target.machine}")
            wheels = dependencies(wheel, extras, target)
            self._on_step(f"building the {role}'s image ({tag})")
            with tempfile.TemporaryFile() as context:
                files: dict[str, Path | bytes] = {
                    "Dockerfile": FILES / "Dockerfile",
                    "healthy": FILES / "healthy",
                    f"package/{wheel.name}": wheel,
                }
                files |= {f"dependencies/{path.name}": path for path in wheels.iterdir()}
                _pack(context, files)
                return self._build(name, tag, digest, base, context, target=role)

    def _target(self, base: DockerImage) -> Target:
        ask = "import platform as p; print(*p.python_version_tuple()[:2], p.machine())"
        with asking(f"{base.tags or base.id} has no Python"):
            said: bytes = self._client.containers.run(
                base, ["python3", "-c", ask], remove=True, network_mode="none"
            )
        major, minor, machine = said.decode().split()
        if (int(major), int(minor)) < (3, 11):
            raise ConfigurationError(
                "the base image's Python is too old", expected="3.11", got=f"{major}.{minor}"
            )
        return Target(f"{major}.{minor}", machine)

    def _find(self, name: str, tag: str, digest: str, base: DockerImage) -> Image | None:
        """The image of that digest; it gets the floating tag that compose uses, as if built now."""
        with asking(f"image {name}"):
            try:
                image = self._client.images.get(f"{name}:{tag}-{digest}")
            except ImageNotFound:
                return None
            image.tag(name, tag)
        return _image(image, f"{name}:{tag}-{digest}", base)

    def _build(
        self,
        name: str,
        tag: str,
        digest: str,
        base: DockerImage,
        context: IO[bytes],
        *,
        target: str = "",
    ) -> Image:
        whole = f"{name}:{tag}-{digest}"
        with asking(f"image {whole} cannot be built"):
            lines = self._client.api.build(
                fileobj=context,
                custom_context=True,
                tag=whole,
                buildargs={"BASE": base.id},
                labels={IMAGE: digest},
                target=target or None,
                rm=True,
                forcerm=True,
                decode=True,
            )
            said: list[str] = []
            for line in lines:
                said.append(line.get("stream", ""))
                if "error" in line:
                    end = "".join(said)[-1500:].strip()
                    raise EngineError(f"image {whole} cannot be built: {line['error']}\n{end}")
            image = self._client.images.get(whole)
            image.tag(name, tag)
        return _image(image, whole, base)


def _base(
    client: DockerClient, asked: str | None, local: str, public: str, on_step: Step
) -> DockerImage:
    for name in [asked] if asked else [local, public]:
        try:
            return client.images.get(name)
        except ImageNotFound:
            continue
    name = asked or public
    on_step(f"fetching {name}")
    try:
        return client.images.pull(name, tag=None if ":" in name else "latest")
    except APIError as error:
        raise ConfigurationError(
            f"there is no base image: {name} cannot be fetched",
            expected="a registry that the engine reaches, or base images made here: "
            "sudo deploy/images/base.sh",
            got=error.explanation or str(error),
        ) from error


def _image(image: DockerImage, name: str, base: DockerImage) -> Image:
    size = int(image.attrs["Size"])
    return Image(name, str(image.id), size, size - int(base.attrs["Size"]))


def _digest(*parts: str | bytes | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else (part or "").encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def _pack(context: IO[bytes], files: Mapping[str, Path | bytes]) -> None:
    """A build's context: root's files, the same whenever they are packed."""
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in sorted(files.items(), key=lambda item: item[0]):
            info = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else content.read_bytes()
            info.size = len(data)
            executable = isinstance(content, Path) and content.stat().st_mode & 0o100
            info.mode = 0o755 if executable else 0o644
            archive.addfile(info, io.BytesIO(data))
    context.seek(0)
