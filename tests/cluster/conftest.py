"""A cluster of real processes, one per test file, and a raw MQTT client that counts answers."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import pytest_asyncio
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.photo import PHOTO

MODEL = "mobilenet_v2"
FLAGS = ServeFlags(weights="none", min_stages=2, max_stages=2, timeout_s=110)
JPEG = PHOTO.read_bytes()
ROOT = "amp4ec/v1"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models are imported once per run of the tests, and nothing is left in the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    directory = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    yield directory
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """Three agents and one model in two stages."""
    async with LocalCluster(tmp_path_factory.mktemp("cluster"), agents=3) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, FLAGS)
        yield cluster


class RawClient:
    """A stock MQTT 5 client with a thread of its own; keeps every answer it gets, by job."""

    def __init__(self, port: int) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.name = f"raw-{uuid.uuid4().hex[:8]}"
        self._came = threading.Condition()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self.name, protocol=paho.MQTTv5
        )
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe(
            f"{ROOT}/result/{self.name}/#", qos=1
        )
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        # A session that outlives the connection: answers sent while the broker restarts wait in it.
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = 600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=session)
        self._client.loop_start()
        assert subscribed.wait(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(
        self,
        payload: bytes,
        *,
        model: str = MODEL,
        job: str | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        user: tuple[tuple[str, str], ...] = (),
    ) -> str:
        """Publish a job, and return its id."""
        job = job or uuid.uuid4().hex
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = response_topic or f"{ROOT}/result/{self.name}/{job}"
        properties.CorrelationData = job.encode()
        properties.UserProperty = [("job", job), *user]
        if content_type is not None:
            properties.ContentType = content_type
        topic = f"{ROOT}/model/{model}/infer"
        self._client.publish(topic, payload, qos=1, properties=properties)
        return job

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Until `condition` holds, which is looked at with every answer."""
        with self._came:
            assert self._came.wait_for(condition, timeout_s), f"answered: {len(self.answers)}"

    def ask(self, payload: bytes, timeout_s: float = 60.0, **how: Any) -> dict[str, Any]:
        """Publish a job, and return its answer."""
        job = self.send(payload, **how)
        self.wait(lambda: bool(self.answers[job]), timeout_s)
        return self.answers[job][0]

    def _take(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        answer = json.loads(message.payload)
        job = message.topic.rsplit("/", 1)[1]
        properties = message.properties
        assert getattr(properties, "CorrelationData", None) == job.encode()
        with self._came:
            self.answers[job].append(answer)
            self._came.notify_all()


@pytest.fixture
def raw(cluster: LocalCluster) -> Iterator[RawClient]:
    client = RawClient(cluster.broker.port)
    yield client
    client.close()


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.05)
