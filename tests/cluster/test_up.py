"""`amp4ec up` and the quickstart as people run them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.photo import PHOTO
from deploy.supervisor import child_environment, command
from tests.cluster.conftest import MODEL, alive, until

pytestmark = pytest.mark.timeout(240)
SERVE = ["--serve", MODEL, "--weights", "none", "--min-stages", "2", "--max-stages", "2"]


class Up:
    """A running `amp4ec up`, its output read as it comes."""

    def __init__(self, *arguments: str) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(
            command("up", *arguments),
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Iterator[str], lines: list[str]) -> None:
        lines.extend(line.rstrip() for line in stream)

    def line(self, beginning: str, timeout_s: float = 120.0) -> str:
        def found() -> list[str]:
            return [line for line in (*self.out, *self.err) if line.startswith(beginning)]

        until(lambda: bool(found()) or self.process.poll() is not None, timeout_s)
        assert found(), "\n".join((*self.out, *self.err))
        return found()[0]

    def agents(self) -> dict[str, int]:
        """Process ids by name, as `up` prints them."""
        lines = [line.replace(",", "").split() for line in self.err if ": pid " in line]
        return {words[0].rstrip(":"): int(words[2]) for words in lines}

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        return status


@contextmanager
def running(*arguments: str) -> Iterator[Up]:
    up = Up(*arguments)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)
        for stream in (up.process.stdout, up.process.stderr):
            assert stream is not None
            stream.close()


def amp4ec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_up_from_start_to_end(tmp_path: Path) -> None:
    with running("--port", "0", "--agents", "2", "--directory", str(tmp_path), *SERVE) as up:
        ready = up.line("ready ")
        url = ready.split()[1]
        assert ready == f"ready {url} {MODEL} in 2 stages"
        children = up.children()
        assert len(children) >= 4

        answer = amp4ec("infer", MODEL, str(PHOTO), "--json", "--broker", url)
        assert answer.returncode == 0, answer.stderr
        document = json.loads(answer.stdout)
        assert document["status"] == "ok"
        assert len(document["trace"]) == 2
        assert document["weights"] == "none"

        several = amp4ec("infer", MODEL, str(PHOTO), __file__, "--json", "--broker", url)
        assert several.returncode == 1
        first, second = json.loads(several.stdout)
        assert (first["status"], second["status"]) == ("ok", "error")
        assert second["error"]["code"] == "bad_input"

        human = amp4ec("infer", MODEL, str(PHOTO), "--top", "2", "--broker", url)
        assert "random" in human.stdout
        assert "stage 1" in human.stdout

        status = json.loads(amp4ec("status", "--json", "--broker", url).stdout)
        assert [node["state"]["state"] for node in status["nodes"]] == ["online", "online"]
        assert status["models"][0]["state"] == "serving"
        table = amp4ec("status", "--broker", url)
        assert max(map(len, table.stdout.splitlines())) <= 80
        assert "agent-1" in table.stdout

        stopped = amp4ec("stop", MODEL, "--broker", url)
        assert stopped.returncode == 0, stopped.stderr
        gone = amp4ec("infer", MODEL, str(PHOTO), "--json", "--broker", url)
        assert gone.returncode == 1
        assert json.loads(gone.stdout)["error"]["code"] == "unknown_model"

        again = amp4ec("serve", MODEL, "--weights", "none", "--json", "--broker", url)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["state"] == "serving"

        name, pid = next(iter(up.agents().items()))
        os.kill(pid, signal.SIGKILL)
        up.line(f"{name} (pid {pid}) ended with signal 9")
        assert amp4ec("infer", MODEL, str(PHOTO), "--broker", url).returncode == 0

        assert up.end(signal.SIGTERM) == 0
        assert not [pid for pid in children if alive(pid)]


def test_interrupt_while_starting(tmp_path: Path) -> None:
    with running("--port", "0", "--agents", "1", "--directory", str(tmp_path)) as up:
        up.line("agent-1: ")
        children = up.children()
        assert up.end(signal.SIGINT) == 0
        assert not [pid for pid in children if alive(pid)]


def test_killed_without_warning_leaves_no_child(tmp_path: Path) -> None:
    with running("--port", "0", "--agents", "1", "--directory", str(tmp_path)) as up:
        up.line("ready ")
        children = up.children()
        up.end(signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in children), 40)


def test_port_that_is_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        result = amp4ec("up", "--port", str(sock.getsockname()[1]))
    assert result.returncode == 1
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_orchestrator_that_ends_ends_up(tmp_path: Path) -> None:
    with running("--port", "0", "--agents", "1", "--directory", str(tmp_path)) as up:
        up.line("ready ")
        (orchestrator,) = [pid for pid in up.children() if b"\0orchestrator\0" in _command(pid)]
        os.kill(orchestrator, signal.SIGKILL)
        assert up.process.wait(60) == 1
    assert any("the orchestrator ended" in line for line in up.err)


def test_model_that_cannot_be_served() -> None:
    result = amp4ec("up", "--port", "0", "--agents", "1", "--serve", "mobilenet_v9")
    assert result.returncode == 1
    assert "mobilenet_v2" in result.stderr
    assert "Traceback" not in result.stderr


def test_json_is_one_document(tmp_path: Path) -> None:
    with running("--port", "0", "--agents", "1", "--json", "--directory", str(tmp_path)) as up:
        document = json.loads(up.line("{"))
        assert document["state"] == "ready"
        assert document["agents"][0]["node"] == "agent-1"
        assert alive(document["agents"][0]["pid"])
    assert len(up.out) == 1


def test_quickstart_tells_its_story() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deploy.quickstart", "--weights", "none"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(answers) >= 2
    assert all(answer["status"] == "ok" for answer in answers)
    assert len(answers[0]["trace"]) == 3
    assert len(answers[-1]["trace"]) <= 2
    assert answers[-1]["generation"] > answers[0]["generation"]
    assert "Stefan van der Walt" in result.stdout
    assert "left free, the planner would have chosen" in result.stdout
    assert "event: " in result.stdout
    assert "random" in result.stdout


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
