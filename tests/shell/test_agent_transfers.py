"""Transfers between peers on the fake wire: honest, lossy, lying, and cut."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from shared.artifact_store import ArtifactStore
from shared.bus import ControlBus
from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import ArtifactError
from shared.messages.artifact import PIECE_BYTES, Piece, Want
from shared.messages.stage import Blob
from shared.pieces import PieceShelf
from shared.topics import Topics
from shared.transfer import BlobSource, MemoryBlobs, Transfers
from tests.fakes.wire import FakeBroker, Mischief

TOPICS = Topics("test")
DATA = random.Random(1).randbytes(5 * PIECE_BYTES + 1000)
BLOB = Blob(digest=hashlib.sha256(DATA).hexdigest(), size=len(DATA))


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 (what is watched has no event)
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def peer(
    broker: FakeBroker,
    name: str,
    *,
    store: ArtifactStore | None = None,
    source: BlobSource | None = None,
    timeout_s: float = 0.05,
    link: float | None = None,
    allowed: Callable[[], float | None] = lambda: None,
) -> AsyncIterator[Transfers]:
    bus: ControlBus = broker.control(name)
    transfers = Transfers(
        bus,
        TOPICS,
        name,
        store=store,
        source=source,
        timeout_s=timeout_s,
        link_bytes_per_s=lambda: link,
        allowed_bytes_per_s=allowed,
    )
    async with bus, transfers:

        async def read() -> None:
            async for message in bus.messages():
                row, levels = TOPICS.parse(message.topic)
                assert transfers.handle(row, levels, message)

        reader = asyncio.create_task(read())
        try:
            yield transfers
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


@dataclass
class Source:
    """Counts reads, and may lie."""

    blobs: dict[str, bytes]
    reads: int = 0

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        self.reads += 1
        return MemoryBlobs(self.blobs).read(digest, offset, length)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache", 10 * len(DATA))


async def test_blob_arrives_whole_with_progress(store: ArtifactStore) -> None:
    broker = FakeBroker()
    seen: list[tuple[int, int]] = []
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=store) as b,
    ):
        path = await b.fetch(BLOB, "a", lambda done, size: seen.append((done, size)))
        assert path.read_bytes() == DATA
        assert seen[-1] == (len(DATA), len(DATA))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert await b.fetch(BLOB, "nobody") == path  # from the cache now


async def test_chain_of_stores(tmp_path: Path, store: ArtifactStore) -> None:
    """What was fetched is served on: the same code on both sides."""
    broker = FakeBroker()
    middle = ArtifactStore(tmp_path / "middle", 10 * len(DATA))
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=middle) as b,
        peer(broker, "c", store=store) as c,
    ):
        await b.fetch(BLOB, "a")
        assert (await c.fetch(BLOB, "b")).read_bytes() == DATA


async def test_unknown_blob_is_refused_at_once(store: ArtifactStore) -> None:
    broker = FakeBroker()
    async with peer(broker, "a", source=MemoryBlobs({})) as a, peer(broker, "b", store=store) as b:
        with pytest.raises(ArtifactError, match="no such blob") as refused:
            await b.fetch(BLOB, "a")
        assert BLOB.digest in str(refused.value)
        assert a.counters.wants_refused > 0


async def test_nobody_there(store: ArtifactStore) -> None:
    broker = FakeBroker()
    async with peer(broker, "b", store=store, timeout_s=0.005) as b:
        with pytest.raises(ArtifactError, match="no answer"):
            await b.fetch(BLOB, "nobody")


async def test_concurrent_fetches_share_one_transfer(store: ArtifactStore) -> None:
    broker = FakeBroker()
    source = Source({BLOB.digest: DATA})
    async with (
        peer(broker, "a", source=source, timeout_s=5),
        peer(broker, "b", store=store, timeout_s=5) as b,
    ):
        paths = await asyncio.gather(*(b.fetch(BLOB, "a") for _ in range(5)))
        assert len(set(paths)) == 1
        assert source.reads == 6


async def test_several_askers_do_not_read_the_disk_again(tmp_path: Path) -> None:
    broker = FakeBroker()
    source = Source({BLOB.digest: DATA})
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(peer(broker, "a", source=source, timeout_s=5))
        askers = [
            await stack.enter_async_context(
                peer(
                    broker,
                    f"n{index}",
                    store=ArtifactStore(tmp_path / str(index), 10 * len(DATA)),
                    timeout_s=5,
                )
            )
            for index in range(3)
        ]
        await asyncio.gather(*(asker.fetch(BLOB, "a") for asker in askers))
        assert source.reads == 6


async def test_lossy_wire(store: ArtifactStore) -> None:
    broker = FakeBroker(
        seed=3, mischief=(Mischief(pattern="test/artifact/#", lose_ratio=0.2, repeat_ratio=0.3),)
    )
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=store) as b,
    ):
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA


async def test_liar_is_found_out(store: ArtifactStore) -> None:
    """Pieces that are right in themselves, of a blob that is not the one asked for."""
    broker = FakeBroker()
    lies = Source({BLOB.digest: bytes(len(DATA))})
    async with (
        peer(broker, "a", source=lies, timeout_s=5),
        peer(broker, "b", store=store, timeout_s=5) as b,
    ):
        with pytest.raises(ArtifactError, match="the whole blob is wrong, 2 times"):
            await b.fetch(BLOB, "a")
    assert store.path(BLOB.digest) is None


async def test_damaged_pieces_are_counted_and_asked_for_again(store: ArtifactStore) -> None:
    broker = FakeBroker()
    bus = broker.control("a")
    async with bus, peer(broker, "b", store=store, timeout_s=5) as b:
        await bus.subscribe(TOPICS.topic("artifact_want", peer="a"))
        served: set[int] = set()

        async def lie_once() -> None:
            async for message in bus.messages():
                want = decode_msgpack(message.payload, Want)
                data = DATA[want.offset : want.offset + want.length]
                bad = want.offset not in served
                served.add(want.offset)
                answer = Piece(
                    digest=want.digest,
                    offset=want.offset,
                    size=len(DATA),
                    data=memoryview(bytes(len(data)) if bad else data),
                    sha256=memoryview(hashlib.sha256(data).digest()),
                )
                await bus.publish(
                    TOPICS.topic("artifact_piece", peer="b"), bytes(encode_msgpack(answer))
                )

        liar = asyncio.create_task(lie_once())
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA
        liar.cancel()
        await asyncio.gather(liar, return_exceptions=True)
        assert b.counters.bad_pieces == 6


async def test_resumes_after_an_interruption(store: ArtifactStore) -> None:
    broker = FakeBroker()
    source = Source({BLOB.digest: DATA})
    async with (
        peer(broker, "a", source=source, timeout_s=5),
        peer(broker, "b", store=store, timeout_s=5) as b,
    ):
        halfway = asyncio.Event()
        fetching = asyncio.create_task(
            b.fetch(BLOB, "a", lambda done, _: halfway.set() if done >= 2 * PIECE_BYTES else None)
        )
        await halfway.wait()
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        begun = store.open_part(BLOB.digest, BLOB.size)
        kept = begun.offset
        begun.keep()
        assert kept >= 2 * PIECE_BYTES
        first: list[int] = []
        path = await b.fetch(BLOB, "a", lambda done, _: first.append(done))
        assert path.read_bytes() == DATA
        assert first[0] >= 2 * PIECE_BYTES


async def test_cancelled_and_wanted_again_at_once(store: ArtifactStore) -> None:
    broker = FakeBroker()
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=store) as b,
    ):
        first = asyncio.create_task(b.fetch(BLOB, "a"))
        await until(lambda: b.counters.bytes_received)
        first.cancel()
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_cancelled_before_a_thread_puts_it_in_its_place(store: ArtifactStore) -> None:
    broker, gate, whole = FakeBroker(), threading.Event(), asyncio.Event()
    pool = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool)

    def progress(written: int, size: int) -> None:
        if written == size and not whole.is_set():
            whole.set()
            pool.submit(gate.wait)

    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=store) as b,
    ):
        first = asyncio.create_task(b.fetch(BLOB, "a", progress))
        await whole.wait()
        await until(pool._work_queue.qsize)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gate.set()
        assert [path.suffix for path in (store.directory / "part").iterdir()] == [".part"]
        gc.collect()  # a file that is still open is said here
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA


async def test_survives_a_cut(store: ArtifactStore) -> None:
    broker = FakeBroker()
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})),
        peer(broker, "b", store=store) as b,
    ):
        fetching = asyncio.create_task(b.fetch(BLOB, "a"))
        await until(lambda: b.counters.bytes_received)
        broker.cut("b")
        broker.mend("b")
        assert (await fetching).read_bytes() == DATA


async def test_rubbish_is_counted_and_dropped(store: ArtifactStore) -> None:
    broker = FakeBroker()
    async with (
        peer(broker, "a", source=MemoryBlobs({BLOB.digest: DATA})) as a,
        peer(broker, "b", store=store) as b,
    ):
        broker.publish(TOPICS.topic("artifact_want", peer="a"), b"\xc1rubbish", 1)
        broker.publish(TOPICS.topic("artifact_piece", peer="b"), b"", 1)
        await until(lambda: a.counters.bad_messages and b.counters.bad_messages)
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA


async def test_a_peer_that_asks_for_everything_leaves_the_others_their_turn(
    store: ArtifactStore,
) -> None:
    broker = FakeBroker()
    async with (
        peer(broker, "a", source=Source({BLOB.digest: DATA})) as a,
        peer(broker, "b", store=store) as b,
    ):
        for offset in range(5000):
            want = Want(digest=BLOB.digest, offset=offset % len(DATA), length=1, reply="greedy")
            broker.publish(TOPICS.topic("artifact_want", peer="a"), bytes(encode_msgpack(want)), 1)
        assert (await b.fetch(BLOB, "a")).read_bytes() == DATA
        assert a.counters.wants_dropped > 0


async def test_a_damaged_piece_is_named_and_comes_again(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a blob on its way, packed or not: which one, at which offset, from whom."""
    broker = FakeBroker()
    weights = np.random.default_rng(1).normal(size=PIECE_BYTES).astype("<f4").tobytes()
    blob = Blob(digest=hashlib.sha256(weights).hexdigest(), size=len(weights))
    bus = broker.control("a")
    shelf = PieceShelf(MemoryBlobs({blob.digest: weights}))
    async with bus, peer(broker, "b", store=store, timeout_s=5, link=1e6) as b:
        await bus.subscribe(TOPICS.topic("artifact_want", peer="a"))

        async def damage_one() -> None:
            damaged = False
            async for message in bus.messages():
                want = decode_msgpack(message.payload, Want)
                piece = await shelf.piece(want)
                assert piece.width == 4
                if want.offset == 2 * PIECE_BYTES and not damaged:
                    damaged = True
                    bad = bytearray(piece.data)
                    bad[len(bad) // 2] ^= 1
                    piece = replace(piece, data=memoryview(bad))
                await bus.publish(
                    TOPICS.topic("artifact_piece", peer="b"), bytes(encode_msgpack(piece))
                )

        provider = asyncio.create_task(damage_one())
        assert (await b.fetch(blob, "a")).read_bytes() == weights
        provider.cancel()
        await asyncio.gather(provider, return_exceptions=True)
        assert b.counters.bad_pieces == 1
    (line,) = [text for text in caplog.messages if "asked for again" in text]
    assert f"digest={blob.digest} peer=a" in line
    assert f"offset={2 * PIECE_BYTES}" in line


@pytest.mark.parametrize(("link", "packed"), [(1.25e6, True), (None, False), (131e6, False)])
async def test_weights_travel_packed_over_a_thin_link_only(
    store: ArtifactStore, link: float | None, packed: bool
) -> None:
    broker = FakeBroker()
    weights = np.random.default_rng(1).normal(size=PIECE_BYTES).astype("<f4").tobytes()
    blob = Blob(digest=hashlib.sha256(weights).hexdigest(), size=len(weights))
    async with (
        peer(broker, "a", source=MemoryBlobs({blob.digest: weights})) as a,
        peer(broker, "b", store=store, timeout_s=5, link=link) as b,
    ):
        fetched = await b.bring(blob, "a")
        assert fetched.path.read_bytes() == weights
        assert a.counters.pieces_packed == (4 if packed else 0)
        assert fetched.received_bytes == b.counters.bytes_received
        assert (fetched.received_bytes < 0.92 * len(weights)) == packed
        assert (await b.bring(blob, "a")).received_bytes == 0


async def test_a_limit_makes_pieces_small_and_lets_them_come_one_at_a_time(
    store: ArtifactStore,
) -> None:
    broker = FakeBroker()
    source = Source({BLOB.digest: DATA})
    limits: list[float | None] = [20e6]
    async with (
        peer(broker, "a", source=source) as a,
        peer(broker, "b", store=store, timeout_s=5, allowed=lambda: limits[0]) as b,
    ):
        began = time.monotonic()
        seen = 0

        def progress(done: int, _: int) -> None:
            nonlocal seen
            if done > len(DATA) // 2:
                limits[0] = None  # whatever it made way for has ended
            elif done:
                seen = done
                assert seen <= 20e6 * (time.monotonic() - began) + PIECE_BYTES

        assert (await b.fetch(BLOB, "a", progress)).read_bytes() == DATA
        assert seen > 0
        # Small pieces do not make the provider read its disk more often.
        assert a.counters.pieces_sent >= source.reads == 6


async def test_a_piece_across_blocks_and_beyond_the_end(tmp_path: Path) -> None:
    shelf = PieceShelf(MemoryBlobs({BLOB.digest: DATA}), most_bytes=PIECE_BYTES)
    for offset, length in (
        (0, 1),
        (PIECE_BYTES - 1, 2),
        (10, 3 * PIECE_BYTES),
        (5 * PIECE_BYTES, PIECE_BYTES),
        (len(DATA), 5),
        (len(DATA) - 3, 4 * 1024 * 1024),
    ):
        want = Want(digest=BLOB.digest, offset=offset, length=length, reply="b")
        piece = await shelf.piece(want)
        assert bytes(piece.data) == DATA[offset : offset + length]
        assert piece.size == len(DATA)
    with pytest.raises(ArtifactError):
        await shelf.piece(Want(digest="0" * 64, offset=0, length=1, reply="b"))
