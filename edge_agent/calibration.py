"""How fast one core of this device is with one runtime, by class of operator.

Small fixed graphs, one per class, run through the runtime itself; the figure is the median CPU time of a run.
CPU time rather than wall time, so that a quota (which a burst of 20 ms does not see) or a busy neighbour does
not distort it. One thread: the planner multiplies by the CPU share.

The agent measures in a child process at low priority (`python -m edge_agent.calibration --runtime torch`), so
that its own memory stays small and its birth is not delayed; the machine that profiles a model calls
`calibrate` in its own process. The graphs must not change without `VERSION`: nodes are compared by them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from edge_agent.runtimes import LoadedStage, open_runtime
from shared.codec import decode_json, encode_json
from shared.errors import Amp4ecError, ProtocolError, StageError
from shared.graph import CostClass, Graph, GraphBuilder
from shared.logs import get_log
from shared.messages.node import Calibration, Hardware
from shared.tensor import Array

log = get_log(__name__)

VERSION = 2
_BUDGET_S = 1.5
"""CPU seconds of all runs; a slow device's last round may go beyond."""
_RUNS = 4
_LEAST_ROUNDS = 2
_MOST_ROUNDS = 60
_ASK_AGAIN_S = 0.2
_CHILD_TIMEOUT_S = 600.0
"""Under a quota of 0.2 importing the runtime alone takes 10 s and more."""


def calibrate(runtime: str) -> Calibration:
    """Measure `runtime` in this process: at most about 3 s of CPU, its import not counted.

    `runtime_bytes` is this process's resident memory with the runtime and the small graphs loaded.

    Raises:
        StageError: the runtime is not installed, or cannot run the graphs.
    """
    engine = open_runtime(runtime)
    began_s = time.process_time()
    graphs = calibration_graphs()
    samples: dict[CostClass, list[float]] = {name: [] for name in graphs}
    with tempfile.TemporaryDirectory(prefix="amp4ec-calibration-") as folder:
        stages: dict[CostClass, tuple[LoadedStage, dict[str, Array]]] = {}
        try:
            for name, graph in graphs.items():
                digest, path = _write_weights(graph, Path(folder))
                stage = engine.load(_with_blob(graph, digest), {digest: path}, threads=1)
                stages[name] = (stage, _inputs(graph))
            # In rounds, so that a busy moment of the machine falls on all classes alike.
            spent_s = 0.0
            for number in range(_MOST_ROUNDS):
                for name, (stage, inputs) in stages.items():
                    times = [_cpu_s(stage, inputs) for _ in range(_RUNS)]
                    spent_s += sum(times)
                    # The first run finds the caches full of another class's data.
                    samples[name] += times[1:]
                if spent_s > _BUDGET_S and number + 1 >= _LEAST_ROUNDS:
                    break
        finally:
            for stage, _ in stages.values():
                stage.unload()
    return Calibration(
        seconds={name.value: round(statistics.median(times), 9) for name, times in samples.items()},
        runtime_bytes=psutil.Process().memory_info().rss,
        measured_in_s=round(time.process_time() - began_s, 3),
    )


def _cpu_s(stage: LoadedStage, inputs: dict[str, Array]) -> float:
    began = time.thread_time()
    stage.run(inputs)
    return max(1e-7, time.thread_time() - began)


# The graphs. Shapes are those of MobileNet- and ResNet-like middles, so that caches are filled as they are
# there, and one run takes about a millisecond on a server's core and some tens on a small board.


def _conv_dense() -> Graph:
    b = GraphBuilder("conv_dense")
    x = b.input("x", (1, 64, 28, 28))
    for index, (channels_in, channels, size) in enumerate(
        ((64, 192, 1), (192, 64, 1), (64, 64, 3))
    ):
        x = b.node(
            "conv2d", x, b.weight(f"w{index}", (channels, channels_in, size, size)),
            b.weight(f"b{index}", (channels,)), shape=(1, channels, 28, 28),
            stride=(1, 1), padding=(size // 2, size // 2), dilation=(1, 1), groups=1,
        )  # fmt: skip
    return b.build(x)


def _conv_depthwise() -> Graph:
    b = GraphBuilder("conv_depthwise")
    x = b.input("x", (1, 192, 28, 28))
    for index in range(3):
        x = b.node(
            "conv2d", x, b.weight(f"w{index}", (192, 1, 3, 3)), b.weight(f"b{index}", (192,)),
            shape=(1, 192, 28, 28),
            stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=192,
        )  # fmt: skip
    return b.build(x)


def _matmul() -> Graph:
    b = GraphBuilder("matmul")
    x = b.input("x", (1, 64, 256))
    for index, (width_in, width) in enumerate(((256, 1024), (1024, 256))):
        x = b.node(
            "linear", x, b.weight(f"w{index}", (width, width_in)), b.weight(f"b{index}", (width,)),
            shape=(1, 64, width),
        )  # fmt: skip
    return b.build(x)


def _memory() -> Graph:
    b = GraphBuilder("memory")
    shape = (1, 96, 112, 112)
    first = b.input("x", shape)
    x = b.node("hardtanh", first, shape=shape, min=0.0, max=6.0)
    x = b.node("add", x, first, shape=shape, alpha=1.0)
    return b.build(b.node("relu", x, shape=shape))


def _overhead() -> Graph:
    b = GraphBuilder("overhead")
    x = b.input("x", (1, 8))
    for index in range(64):
        x = b.node(("relu", "sigmoid")[index % 2], x, shape=(1, 8))
    return b.build(x)


_GRAPHS: dict[CostClass, Callable[[], Graph]] = {
    CostClass.CONV_DENSE: _conv_dense,
    CostClass.CONV_DEPTHWISE: _conv_depthwise,
    CostClass.MATMUL: _matmul,
    CostClass.MEMORY: _memory,
    CostClass.OVERHEAD: _overhead,
}


def calibration_graphs() -> dict[CostClass, Graph]:
    """What is timed, by class: figures can be had per unit of work by what these do."""
    return {name: build() for name, build in _GRAPHS.items()}


def _inputs(graph: Graph) -> dict[str, Array]:
    # Fixed values of ordinary size: denormals and zeros would be another workload.
    return {
        value.name: np.linspace(
            -1.0, 1.0, int(np.prod(value.spec.shape)), dtype=np.float32
        ).reshape(value.spec.shape)
        for value in graph.inputs
    }


def _write_weights(graph: Graph, folder: Path) -> tuple[str, Path]:
    """The graph's weights as one safetensors file (its format is 20 lines; its library is not needed)."""
    header: dict[str, object] = {}
    parts: list[bytes] = []
    offset = 0
    for name, weight in sorted(graph.weights.items()):
        count = int(np.prod(weight.spec.shape))
        fan_in = max(1, count // weight.spec.shape[0])
        values = np.linspace(-1.0, 1.0, count, dtype="<f4") / fan_in
        parts.append(values.astype("<f4").tobytes())
        header[name] = {
            "dtype": "F32",
            "shape": list(weight.spec.shape),
            "data_offsets": [offset, offset + 4 * count],
        }
        offset += 4 * count
    text = encode_json(header)
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest
    path.write_bytes(data)
    return digest, path


def _with_blob(graph: Graph, digest: str) -> Graph:
    weights = {name: replace(weight, blob=digest) for name, weight in graph.weights.items()}
    return replace(graph, weights=weights)


def default_calibration_dir() -> Path:
    """`amp4ec/calibration` below the user's cache directory (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "amp4ec" / "calibration"


class CalibrationCache:
    """Calibrations on disk: one per runtime, its version and device, shared by all processes of a user.

    The CPU share is not in the key: the figures are CPU seconds. So agents on one machine, and the command
    that profiles a model there, go by the same figures, and it is measured once for all of them.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One process at a time measures: the others wait here, and then find what it has put.

        Agents that start together would otherwise disturb each other's figures. Without a place for the
        lock nobody waits.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            file = (self._directory / "lock").open("w")
        except OSError:
            yield
            return
        with file:
            # Asked again and again rather than waited for: a waiting thread could not be cancelled.
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_ASK_AGAIN_S)
            yield

    def get(self, runtime: str, version: str, hardware: Hardware) -> Calibration | None:
        """What was measured before under the same circumstances, marked `cached`."""
        try:
            found = decode_json(self._path(runtime, version, hardware).read_bytes(), Calibration)
        except (OSError, ProtocolError):  # not there, or of another time: measured anew
            return None
        return Calibration(
            seconds=found.seconds,
            runtime_bytes=found.runtime_bytes,
            measured_in_s=found.measured_in_s,
            cached=True,
        )

    def put(self, runtime: str, version: str, hardware: Hardware, value: Calibration) -> None:
        """Keep `value`; without a place to keep it, it is measured again next time."""
        path = self._path(runtime, version, hardware)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(encode_json(value))
            temporary.replace(path)
        except OSError as error:
            log.warning("calibration not kept", runtime=runtime, error=error)

    def _path(self, runtime: str, version: str, hardware: Hardware) -> Path:
        circumstances = (
            VERSION, runtime, version, hardware.architecture, hardware.cpu_model, hardware.cores,
            hardware.python,
        )  # fmt: skip
        name = hashlib.sha256(repr(circumstances).encode()).hexdigest()[:16]
        return self._directory / f"{runtime}-{name}.json"


async def calibrate_in_child(runtime: str) -> Calibration:
    """`calibrate` in a child process at low priority, which ends with this coroutine.

    Raises:
        StageError: the child failed; says with what.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent.calibration", "--runtime", runtime,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the agent: it ends its child itself
    )  # fmt: skip
    try:
        async with asyncio.timeout(_CHILD_TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    lines = err.decode(errors="replace").strip().splitlines()
    if process.returncode != 0:
        raise StageError(
            f"calibration of {runtime} failed with exit code {process.returncode}",
            got=lines[-1] if lines else "no message",
        )
    return decode_json(out, Calibration)


def main() -> int:
    """`python -m edge_agent.calibration --runtime NAME`: prints a `Calibration` as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m edge_agent.calibration", description=main.__doc__
    )
    parser.add_argument("--runtime", required=True, help="such as torch")
    arguments = parser.parse_args()
    os.nice(19)
    try:
        result = calibrate(arguments.runtime)
    except Amp4ecError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(encode_json(result).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
