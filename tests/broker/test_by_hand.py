"""The cluster operated with nothing but `mosquitto_rr`, and read with nothing but `mosquitto_sub`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli.app import cli
from shared.bus import BrokerUrl
from shared.codec import encode_json
from shared.messages.node import NodeState
from shared.sentences import worded
from shared.topics import DEFAULT_ROOT, VERBS
from tests.broker.test_orchestrator import TOPICS, World
from tests.fakes.cluster import FakeAgent, Model

MONITORING = Path(__file__).parents[2] / "shared" / "MONITORING.md"


class Lines:
    """What a program prints, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen: list[str] = []

    async def until(self, *words: str) -> str:
        """A line that has all these words, read before or to come: what is retained comes in any order."""
        for line in self.seen:
            if all(word in line for word in words):
                return line
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(20):
                while line := (await self._process.stdout.readline()).decode():
                    self.seen.append(line)
                    if all(word in line for word in words):
                        return line
        except TimeoutError:
            pass
        raise AssertionError(f"{words} in none of {self.seen}")


class Hand:
    """Somebody with Mosquitto's own tools, at a cluster with two nodes that serves `m`."""

    def __init__(self, url: BrokerUrl, world: World, agent: FakeAgent) -> None:
        self.url = url
        self.world = world
        self.agent = agent
        self._at = ("-h", url.host, "-p", str(url.port))

    @contextlib.asynccontextmanager
    async def shell(self, command: str) -> AsyncIterator[Lines]:
        """A command of the document, at this broker and root, and what it prints."""
        line = command.replace(DEFAULT_ROOT, TOPICS.root)
        line = line.replace("mosquitto_sub", f"exec mosquitto_sub {' '.join(self._at)}", 1)
        line = line.replace("mosquitto_rr", f"mosquitto_rr {' '.join(self._at)} -q 1 -W 20", 1)
        if "|" in line:
            line = line.replace("exec ", "", 1).replace("cut -c", "stdbuf -o0 cut -c")
        process = await asyncio.create_subprocess_shell(
            line, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            yield Lines(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()

    async def ask(self, verb: str, request: object, answer: str = "") -> dict[str, Any]:
        """What `mosquitto_rr` prints of `request` on `request/{verb}`."""
        text = request if isinstance(request, str) else json.dumps(request)
        topic = TOPICS.topic("request", verb=verb)
        reply = TOPICS.topic("response", verb=verb) + answer
        line = await self._run("mosquitto_rr", "-t", topic, "-e", reply, "-m", text)
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    async def _run(self, program: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            program, *self._at, "-q", "1", "-W", "20", *arguments, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, f"{program} {arguments}"
        return output.decode()


@pytest.fixture
async def hand(url: BrokerUrl, tmp_path: Path) -> AsyncIterator[Hand]:
    world = World(url, tmp_path)
    async with world.operator.running(), world.orchestrator():
        agents = [FakeAgent(TOPICS, world.control, name) for name in ("pi-1", "pi-2")]
        async with agents[0].running(), agents[1].running():
            served = await world.operator.serve(Model())
            assert served.status == "ok"
            yield Hand(url, world, agents[0])


async def test_every_verb_by_hand(hand: Hand) -> None:
    def ok(said: dict[str, Any]) -> dict[str, Any]:
        assert (said["transaction"], said["status"], said["error"]) == ("1", "ok", None)
        data = said["data"]
        assert isinstance(data, dict)
        return data

    asked = {"transaction": "1"}
    model = asked | {"model": "m"}
    node = asked | {"node": "pi-2"}
    assert ok(await hand.ask("health", asked))["health"] == "ok"
    info = ok(await hand.ask("info", asked))
    assert set(info["verbs"]) == set(VERBS)
    changed = ok(await hand.ask("set", asked | {"settings": {"cool_down_s": 1}}))
    assert changed["settings"]["cool_down_s"] == 1.0
    assert ok(await hand.ask("cordon", node | {"reason": "fan"})) == {"node": "pi-2"}
    assert ok(await hand.ask("uncordon", node)) == {"node": "pi-2"}
    # Progress comes first on the common topic: who names a topic gets the end of it alone.
    assert ok(await hand.ask("drain", node)) == {"node": "pi-2"}
    assert ok(await hand.ask("uncordon", node, "/me")) == {"node": "pi-2"}
    assert ok(await hand.ask("replan", model))["state"] == "serving"
    options = {"min_stages": 2, "max_stages": 2}
    again = ok(await hand.ask("serve", model | {"options": options}))
    assert [len(each["stages"]) for each in again["pipelines"]] == [2]
    planned = ok(await hand.ask("plan", model | {"options": {}}, "/me"))
    assert {each["name"] for each in planned["nodes"]} == {"pi-1", "pi-2"}
    explained = ok(await hand.ask("explain", asked))["models"]
    # Nothing is said of a model before the dispatcher's first account of it.
    assert [each["decision"] for each in explained] in ([], [None]), "no job came"
    assert ok(await hand.ask("deployments", asked))["deployments"][0]["model"] == "m"
    told = ok(await hand.ask("events", asked | {"most": 100}))["events"]
    assert {"node_joined", "node_drained", "settings_changed"} <= {each["event"] for each in told}
    assert ok(await hand.ask("stop", model)) == {"model": "m"}


@pytest.mark.parametrize(
    ("verb", "request_", "expected"),
    [
        ("health", "", "HealthRequest as JSON"),
        ("drain", "pi-2", "DrainRequest as JSON"),
        ("set", '{"transaction": "1", "settings": {"cool_down_s": "x"}}', "a number, 0 to 86400 s"),
        ("set", '{"transaction": "1", "settings": {"cool": 1}}', "one of gain_threshold_ratio, "),
        ("dance", '{"transaction": "1"}', "one of cordon, deployments, drain, events, "),
        ("serve", '{"transaction": "1", "model": "other"}', "one of the models served: m"),
    ],
)
async def test_a_request_that_is_wrong_is_told_what_was_expected(
    hand: Hand, verb: str, request_: str, expected: str
) -> None:
    said = await hand.ask(verb, request_)
    assert said["status"] == "error"
    assert expected in said["error"]["expected"]
    assert said["transaction"] == ("1" if "transaction" in request_ else "")


def commands(program: str) -> list[str]:
    """Those of the document, in its order."""
    blocks = re.findall(r"```sh\n(.*?)```", MONITORING.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(program)]


async def test_five_subscriptions_answer_five_questions(hand: Hand) -> None:
    who, where, fast, why, wrong, log = commands("mosquitto_sub")
    async with hand.shell(who) as lines:
        for name in ("pi-1", "pi-2"):
            await lines.until(f"node/{name}/state", f'"text":"{name} is online: 1 CPUs, 1.0 GB')
        await hand.ask("cordon", {"transaction": "1", "node": "pi-2", "reason": "a new fan"})
        await lines.until("node/pi-2/cordon", "to get no further model: a new fan")
    async with hand.shell(where) as lines:
        line = await lines.until("model/m/state", '"text":"m is served as generation 1 on ')
        assert "pi-1[0:4]" in line
        assert "predicted " in line
    async with hand.shell(fast) as lines:
        await lines.until("metrics", '"text":"2 nodes online; m 0.0/s, 0 wait, 0 in flight"')
        await hand.agent.tell(cpu_percent=42.0)
        await lines.until("node/pi-1/telemetry", '"text":"pi-1: CPU 42%, memory ')
    async with hand.shell(why) as lines:
        # Live only: said again until the subscription is there to hear it.
        heard = asyncio.ensure_future(lines.until("may be used again", "node_uncordoned"))
        while not heard.done():
            await hand.ask("cordon", {"transaction": "1", "node": "pi-2"})
            await hand.ask("uncordon", {"transaction": "1", "node": "pi-2"})
        said = (await heard).partition(" ")[2]
        assert list(json.loads(said)) == ["at", "text", "event", "level", "node", "v"]
    async with hand.shell(wrong) as lines:
        await lines.until("orchestrator/state", " leads under term 0, nobody stands by")
        await lines.until("orchestrator/health", '"text":"ok: 2 nodes online, serving m"')
        await hand.agent.bus.publish(
            TOPICS.topic("node_state", node="pi-1"),
            encode_json(worded(NodeState(state="lost", node="pi-1", incarnation=1))),
            retain=True,
        )
        await lines.until("orchestrator/health", "node pi-1 was lost without a goodbye")
    async with hand.shell(log) as lines:
        for text in ("pi-2 is online", "m is served", "degraded: "):
            await lines.until(text)
        await hand.ask("cordon", {"transaction": "1", "node": "pi-2", "reason": "the end"})
        await lines.until("event {", "node pi-2 is given no further model: the end")
        for line in lines.seen:
            topic, _, said = line.partition(" ")
            assert "/pipeline/" not in topic
            if topic.partition("/")[2].split("/")[0] not in ("request", "response"):
                assert said.startswith(('{"text":"', '{"at":"')) or not said.strip(), line


async def test_the_requests_of_the_document_are_answered(hand: Hand) -> None:
    asked = commands("mosquitto_rr")
    assert len(asked) == 6
    for command in asked:
        async with hand.shell(command) as lines:
            assert await lines.until('"status":"ok"'), command


async def test_options_and_health_by_command(hand: Hand) -> None:
    async def run(*line: str, code: int = 0) -> str:
        common = ("--broker", str(hand.url), "--root", TOPICS.root)
        result = await asyncio.to_thread(CliRunner().invoke, cli, [*line, *common])
        got = result.return_value if hasattr(result, "return_value") else None
        assert (got or result.exit_code) == code, result.output
        return result.stdout

    listed = await run("options")
    assert re.search(r"cool_down_s +30\.0", listed)
    changed = json.loads(await run("options", "cool_down_s=60", "nsa_weights=1,0,0,0", "--json"))
    assert changed["settings"]["nsa_weights"] == [1.0, 0.0, 0.0, 0.0]
    assert re.search(r"cool_down_s +60\.0 +was 30\.0", await run("options"))
    await run("options", "--reset", "cool_down_s", "scheduler=nsa")
    assert set(json.loads(await run("options", "--json"))["changed"]) == {
        "nsa_weights", "scheduler",
    }  # fmt: skip
    assert await run("health") == "ok: 2 nodes online, serving m\n"
    await hand.world.operator.serve(Model(name="n"), transaction="n", runtime="torch")
    assert json.loads(await run("health", "--json"))["health"] == "ok"
