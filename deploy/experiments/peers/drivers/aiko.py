"""Aiko Services, the other system of its kind on MQTT: a pipeline process a stage, found by its registrar.

Each pipeline ends in the next one as a remote element, so a frame goes from stage to stage without the asker.
Option `mosquitto`: the broker's program, which runs here with TCP_NODELAY set and no limit on its queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.experiments.peers.drivers.aiko_stage import INDEX, SETUP, from_text, to_text
from deploy.experiments.peers.drivers.lines import PARENT, Array, Setup, Started, drive, same

_NAMESPACE = "peers"
_TRY_S = 5.0
_TRIES = 24


def definition(index: int, stages: int) -> dict[str, Any]:
    """The pipeline of a stage: the stage, and behind it the next pipeline."""
    tensors = [{"name": "tensors", "type": "str"}]
    elements: list[dict[str, Any]] = [
        {
            "name": "Stage",
            "input": tensors,
            "output": tensors,
            "deploy": {"local": {"module": f"{__package__}.aiko_stage"}},
        }
    ]
    last = index == stages - 1
    fields = ("topic_path", "name", "owner", "protocol", "transport", "tags")
    anybody, next_name = dict.fromkeys(fields, "*"), f"stage-{index + 1}"
    if not last:
        elements.append(
            {
                "name": "Next",
                "input": tensors,
                "output": tensors,
                "deploy": {
                    "remote": {"module": "", "service_filter": {**anybody, "name": next_name}}
                },
            }
        )
    return {
        "version": 0,
        "name": f"stage-{index}",
        "runtime": "python",
        "graph": ["(Stage)" if last else "(Stage Next)"],
        "elements": elements,
    }


class Asker:
    """Sends frames to the first pipeline and takes those that the last one has done."""

    def __init__(self, first: str, last: str) -> None:
        from aiko_services.main.message import MQTT

        self._loop = asyncio.get_running_loop()
        self._first = f"{first}/in"
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Array]] = {}
        self._mqtt = MQTT(self._arrived, [f"{last}/out"])

    async def infer(self, image: Array) -> Array:
        """One image's answer; never ends for a frame that was lost."""
        from aiko_services.main.utilities import generate

        number = next(self._numbers)
        future: asyncio.Future[Array] = self._loop.create_future()
        self._waiting[number] = future
        frame = {"stream_id": "1", "frame_id": number}, {"tensors": to_text([image])}
        try:
            await asyncio.to_thread(
                self._mqtt.publish, self._first, generate("process_frame", frame)
            )
            return await future
        finally:
            del self._waiting[number]

    def _arrived(self, client: Any, data: Any, message: Any) -> None:
        """On the MQTT client's thread."""
        del client, data
        from aiko_services.main.utilities import parse

        command, parameters = parse(message.payload.decode())
        if command == "process_frame":
            stream, frame = parameters
            (answer,) = from_text(frame["tensors"])
            self._loop.call_soon_threadsafe(self._answer, int(stream["frame_id"]), answer)

    def _answer(self, number: int, answer: Array) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(answer)


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    stages = int(setup.options["stages"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AIKO_MQTT_HOST": "127.0.0.1",
        "AIKO_MQTT_PORT": str(port),
        "AIKO_NAMESPACE": _NAMESPACE,
        "AIKO_LOG_MQTT": "false",
        "AIKO_LOG_LEVEL": "WARNING",
        PARENT: str(os.getpid()),
        SETUP: sys.argv[1],
    }
    programs = Path(sys.executable).parent
    running: list[asyncio.subprocess.Process] = []

    async def run(*line: str, **variables: str) -> int:
        process = await asyncio.create_subprocess_exec(
            # None of them outlives this driver, however it ends.
            "setpriv",
            "--pdeathsig",
            "KILL",
            *line,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **variables},
        )
        running.append(process)
        return process.pid

    folder = tempfile.TemporaryDirectory(prefix="aiko-")
    scratch = Path(folder.name)
    try:
        (scratch / "mosquitto.conf").write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 0\n"
        )
        await run(str(setup.options["mosquitto"]), "-c", str(scratch / "mosquitto.conf"))
        await _listening(port)
        await run(str(programs / "aiko_registrar"))
        pids = []
        for index in range(stages):
            path = scratch / f"stage-{index}.json"
            path.write_text(json.dumps(definition(index, stages)))
            join = setup.cgroups[index] if setup.cgroups else "/dev/null"
            pids.append(
                await run(
                    "/bin/sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "sh", join,
                    str(programs / "aiko_pipeline"), "create", str(path),
                    **{INDEX: str(index)},
                )
            )  # fmt: skip
        host = socket.gethostname().removesuffix(".local")
        topics = [f"{_NAMESPACE}/{host}/{pid}/1" for pid in pids]
        asker = Asker(topics[0], topics[-1])
        await _ready(asker)
        yield Started(asker.infer, same(pids), {"aiko_services": version("aiko_services")})
    finally:
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        folder.cleanup()


async def _listening(port: int) -> None:
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise ConnectionRefusedError(f"Mosquitto does not listen on port {port}")


async def _ready(asker: Asker) -> None:
    """Until a frame comes back: those before were dropped by pipelines that knew nobody yet."""
    image = np.zeros((1, 3, 224, 224), dtype=np.float32)
    for _ in range(_TRIES):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asker.infer(image), _TRY_S)
            return
    raise TimeoutError(f"no frame came back within {_TRY_S * _TRIES:g} s")


if __name__ == "__main__":
    drive(start)
