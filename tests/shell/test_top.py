"""The live view: what it shows of a cluster, at any size, and what its keys ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot

from deploy.top import view
from deploy.top.app import Top
from shared.client import ClusterStatus
from shared.errors import ErrorCode, JobError
from shared.messages.operation import Happening
from tests.fakes.status import cluster, model, node


@dataclass
class FakeSource:
    """A source that tests change by hand."""

    now: ClusterStatus
    address: str = "127.0.0.1:1883"
    away_s: float | None = None
    version: int = 0
    events: Sequence[Happening] = ()
    rates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def status(self) -> ClusterStatus:
        return self.now

    def tell(self, now: ClusterStatus) -> None:
        self.now = now
        self.version += 1


@dataclass
class FakeOperations:
    asked: list[tuple[str, str]] = field(default_factory=list)
    error: JobError | None = None
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def _do(self, verb: str, name: str) -> str:
        self.asked.append((verb, name))
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return f"{verb} of {name} is done"

    async def drain(self, node: str) -> str:
        return await self._do("drain", node)

    async def uncordon(self, node: str) -> str:
        return await self._do("uncordon", node)

    async def replan(self, model: str) -> str:
        return await self._do("replan", model)


def usual() -> ClusterStatus:
    return cluster(
        [
            node("pi-1", percent=97, stages=[("mobilenet_v2", 0)]),
            node("pi-2", percent=40, queue=3, memory_mb=480, stages=[("mobilenet_v2", 1)]),
            node("pi-3", percent=5, memory_mb=100, drained=True),
            node("pi-4", state="lost"),
        ],
        [model("mobilenet_v2", "pi-1", "pi-2", seconds=[0.0074, 0.0121]), model("resnet18")],
    )


@dataclass
class Screen:
    pilot: Pilot[None]
    source: FakeSource
    operations: FakeOperations

    @property
    def lines(self) -> list[str]:
        """What is on the screen, line by line."""
        app = self.pilot.app
        return ["".join(s.text for s in strip) for strip in app.screen._compositor.render_strips()]

    async def until(self, *texts: str) -> list[str]:
        """Wait until a line has all of the texts in it; those that have."""
        async with asyncio.timeout(20):
            while True:
                found = [line for line in self.lines if all(text in line for text in texts)]
                if found:
                    return found
                await self.pilot.pause(0.02)

    async def until_not(self, text: str) -> None:
        async with asyncio.timeout(20):
            while any(text in line for line in self.lines):
                await self.pilot.pause(0.02)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)


@asynccontextmanager
async def shown(
    now: ClusterStatus, size: tuple[int, int] = (80, 24), **more: object
) -> AsyncIterator[Screen]:
    source = FakeSource(now, **more)  # type: ignore[arg-type]
    operations = FakeOperations()
    app = Top(source, operations)
    async with app.run_test(size=size) as pilot:
        yield Screen(pilot, source, operations)


def happened(text: str, at: str = "2026-11-21T22:38:01.123+00:00") -> Happening:
    return Happening(event="node_left", text=text, at=at)


async def test_all_of_a_small_cluster_fits_in_80_by_24() -> None:
    events = [happened(f"event {number}") for number in range(30)]
    rates = {"mobilenet_v2": [float(number) for number in range(60)]}
    async with shown(usual(), events=events, rates=rates) as screen:
        await screen.until("pi-1", "online", "97%", "150M/512M", "mobilenet_v2[0]")
        await screen.until("pi-3", "drained", "idle")
        await screen.until("pi-4", "lost", "last will, for 1 min")
        await screen.until("mobilenet_v2", "serving", "87.5/s", "92.0 ms", "131 ms", "▁")
        await screen.until("resnet18", "unserved")
        await screen.until("pi-2", "[20, 40)", "12.1 ms", "slowest")
        await screen.until("event 29")
        await screen.until("q quit", "? help")
        assert not [line for line in screen.lines if "event 0" in line], "there is no room for it"
        assert len(screen.lines) == 24
        assert "orchestrator on kitchen" in screen.lines[0]
        assert "3 of 4 nodes" in screen.lines[0]


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (132, 43), (250, 80)])
async def test_any_size_and_any_number(size: tuple[int, int]) -> None:
    """From nothing at all to hundreds of nodes, and smaller while it is shown."""
    names = [f"node-{number}" for number in range(300)]
    many = cluster(
        [node(name, stages=[("m", number)]) for number, name in enumerate(names)],
        [model(f"m{number}", *names[:20]) for number in range(30)],
    )
    async with shown(cluster([], []), size=size) as screen:
        await screen.until("none yet; `amp4ec ")
        screen.source.tell(many)
        await screen.until("node-0", "online")
        assert len(screen.lines) == size[1]
        await screen.pilot.resize_terminal(60, 20)
        await screen.until("300 nodes")
        assert len(screen.lines) == 20
        screen.source.tell(cluster([], []))
        await screen.until("none yet; `amp4ec ")


def test_nodes_stand_in_the_order_of_their_numbers() -> None:
    names = ["pi-2", "pi-10", "pi-1", "pi-02b", "cam", "9", "10"]
    rows = view.node_rows(cluster([node(name) for name in names], []))
    assert [row.key for row in rows] == ["9", "10", "cam", "pi-1", "pi-2", "pi-02b", "pi-10"]


async def test_a_lost_connection_is_shown_and_heals() -> None:
    async with shown(usual()) as screen:
        await screen.until("orchestrator on kitchen")
        screen.source.away_s = 3.2
        await screen.until("no connection to 127.0.0.1:1883 for 3 s", "below is old")
        screen.source.away_s = 4.9
        await screen.until("for 5 s")
        await screen.until("pi-1", "online")
        screen.source.away_s = None
        await screen.until("orchestrator on kitchen")


async def test_drain_asks_first() -> None:
    async with shown(usual()) as screen:
        await screen.until("pi-2")
        await screen.press("down", "d")
        await screen.until("Drain pi-2?")
        await screen.press("n")
        await screen.until_not("Drain pi-2?")
        assert screen.operations.asked == []
        await screen.press("d", "y")
        await screen.until("pi-2: asked")
        await screen.press("d", "y")
        await screen.until("the last key is still at work")
        screen.operations.may_end.set()
        await screen.until("drain of pi-2 is done")
        assert screen.operations.asked == [("drain", "pi-2")]
        await screen.press("down", "d")
        await screen.until("Use pi-3 again?")
        await screen.press("y")
        await screen.until("uncordon of pi-3 is done")
        assert screen.operations.asked[1:] == [("uncordon", "pi-3")]


async def test_what_is_refused_is_said() -> None:
    async with shown(usual()) as screen:
        screen.operations.error = JobError(ErrorCode.UNAVAILABLE, "no plan\x1b[2J fits")
        screen.operations.may_end.set()
        await screen.until("mobilenet_v2", "serving")
        await screen.press("r")
        await screen.until("mobilenet_v2: unavailable: no plan\\x1b[2J fits")
        assert screen.operations.asked == [("replan", "mobilenet_v2")]
        await screen.press("tab", "down")
        await screen.press("r")
        await screen.until("resnet18: unavailable: no plan")
        assert screen.operations.asked[1:] == [("replan", "resnet18")]


async def test_keys_with_nothing_to_choose() -> None:
    async with shown(cluster([], [])) as screen:
        await screen.until("none yet")
        await screen.press("d")
        await screen.until("no node is chosen")
        await screen.press("r")
        await screen.until("no model is chosen")
        assert screen.operations.asked == []


async def test_a_filter_and_an_order() -> None:
    events = [happened("pi-2 joined"), happened("pi-4 was lost")]
    async with shown(usual(), events=events) as screen:
        await screen.until("pi-1", "online")
        await screen.press("slash", *"pi-2")
        await screen.until("NODES by name, with 'pi-2' in it")
        await screen.until_not("pi-4 was lost")
        await screen.press("enter", "d")
        await screen.until("Drain pi-2?")
        await screen.press("n", "escape")
        await screen.until("pi-4 was lost")
        await screen.press("s")
        await screen.until("NODES by use")
        order = [
            line.split()[0] for line in screen.lines if "M/512M" in line or "last will" in line
        ]
        assert order[:4] == ["pi-1", "pi-2", "pi-3", "pi-4"]
        await screen.press("s")
        await screen.until("NODES by memory")
        order = [line.split()[0] for line in screen.lines if "M/512M" in line]
        assert order == ["pi-2", "pi-1", "pi-3"]


async def test_the_cursor_stays_with_its_node() -> None:
    async with shown(usual()) as screen:
        await screen.until("pi-3")
        await screen.press("down", "down")
        screen.source.tell(
            cluster([node("a-new-one"), *usual().nodes], [model("mobilenet_v2", "pi-1", "pi-2")])
        )
        await screen.until("a-new-one")
        await screen.press("d")
        await screen.until("Use pi-3 again?")


async def test_help_and_quit() -> None:
    async with shown(usual()) as screen:
        await screen.press("question_mark")
        await screen.until("drain the chosen node")
        await screen.press("escape")
        await screen.until_not("drain the chosen node")
        await screen.press("q")
        async with asyncio.timeout(20):
            while screen.pilot.app.is_running:
                await screen.pilot.pause(0.02)


@given(st.lists(st.floats(0, 1e6), max_size=100), st.integers(1, 30))
def test_a_trend_is_as_wide_as_it_may_be(rates: list[float], width: int) -> None:
    drawn = view.trend(deque(rates), width)
    assert len(drawn) <= width
    assert bool(drawn) == bool(rates)
    if any(rates):
        assert "█" in drawn


@given(st.floats(-1, 2), st.integers(1, 30))
def test_a_bar(ratio: float, width: int) -> None:
    drawn = view.bar(ratio, width)
    assert len(drawn) == width
    assert drawn == "■" * drawn.count("■") + "·" * drawn.count("·")
    if ratio >= 1:
        assert "·" not in drawn
