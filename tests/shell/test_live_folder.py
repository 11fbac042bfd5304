"""New files of a folder: each once, and only when it is whole."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import watchdog.observers.inotify

from deploy.live import folder
from deploy.live.folder import new_files
from shared.errors import ConfigurationError

SUFFIXES = frozenset({".jpg", ".npy"})
NEVER_S = 3600.0


def ignore(text: str) -> None:
    """Nobody is told."""


@asynccontextmanager
async def watched(
    directory: Path,
    *,
    existing: bool = False,
    look_s: float = NEVER_S,
    told: list[str] | None = None,
) -> AsyncIterator[AsyncGenerator[Path]]:
    """A watch that has begun: a first file has come."""
    tell = ignore if told is None else told.append
    files = new_files(directory, suffixes=SUFFIXES, existing=existing, look_s=look_s, tell=tell)
    async with aclosing(files):
        coming = asyncio.ensure_future(anext(files))
        await asyncio.sleep(0)
        (directory / "zz-begin.jpg").write_bytes(b"first")
        assert (await asyncio.wait_for(coming, 20)).name == "zz-begin.jpg" or existing
        yield files


async def name(files: AsyncGenerator[Path]) -> str:
    return (await asyncio.wait_for(anext(files), 20)).name


async def test_a_file_comes_when_it_is_whole(tmp_path: Path) -> None:
    async with watched(tmp_path) as files:
        with (tmp_path / "slow.jpg").open("wb") as slow:
            slow.write(b"half")
            slow.flush()
            (tmp_path / "fast.jpg").write_bytes(b"whole")
            assert await name(files) == "fast.jpg"
            slow.write(b" and half")
        assert await name(files) == "slow.jpg"


async def test_ways_in(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "moved.jpg").write_bytes(b"1")
    (outside / "linked.jpg").write_bytes(b"2")
    async with watched(inside) as files:
        (inside / ".moved.part").write_bytes(b"0")
        (inside / ".moved.part").rename(inside / "renamed.jpg")
        assert await name(files) == "renamed.jpg"
        (outside / "moved.jpg").rename(inside / "moved.jpg")
        assert await name(files) == "moved.jpg"
        os.link(outside / "linked.jpg", inside / "hard.jpg")
        assert await name(files) == "hard.jpg"
        (inside / "soft.jpg").symlink_to(outside / "linked.jpg")
        assert await name(files) == "soft.jpg"


async def test_what_does_not_count(tmp_path: Path) -> None:
    async with watched(tmp_path) as files:
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / ".hidden.jpg").write_bytes(b"not ready")
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "nothing")
        (tmp_path / "PHOTO.JPG").write_bytes(b"this one")
        assert await name(files) == "PHOTO.JPG"
        (tmp_path / "empty.jpg").write_bytes(b"no longer")
        assert await name(files) == "empty.jpg"


async def test_each_content_once(tmp_path: Path) -> None:
    async with watched(tmp_path) as files:
        snapshot = tmp_path / "snapshot.jpg"
        snapshot.write_bytes(b"one")
        assert await name(files) == "snapshot.jpg"
        with snapshot.open("ab"):  # opened and closed, and nothing written
            pass
        snapshot.write_bytes(b"another")
        assert await name(files) == "snapshot.jpg"
        (tmp_path / "next.jpg").write_bytes(b"2")
        assert await name(files) == "next.jpg"


@pytest.mark.parametrize("existing", [True, False])
async def test_what_is_there_already(tmp_path: Path, existing: bool) -> None:
    for one in ("b.jpg", "a.jpg"):
        (tmp_path / one).write_bytes(b"there")
    async with watched(tmp_path, existing=existing) as files:
        # `watched` has taken one: the first of those that are there, or the one that came.
        assert not existing or [await name(files), await name(files)] == ["b.jpg", "zz-begin.jpg"]
        (tmp_path / "new.jpg").write_bytes(b"new")
        assert await name(files) == "new.jpg"


async def test_without_the_kernels_word_a_file_that_rests_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(watchdog.observers.inotify.InotifyObserver, "schedule", refuse)
    told: list[str] = []
    async with watched(tmp_path, look_s=0.01, told=told) as files:
        (tmp_path / "photo.jpg").write_bytes(b"whole")
        assert await name(files) == "photo.jpg"
    assert "watch limit reached" in told[0]


async def test_a_look_leaves_alone_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = folder._Arrivals.look

    def counted(self: folder._Arrivals, now: dict[Path, Any], **how: bool) -> None:
        nonlocal looks
        looks += 1
        look(self, now, **how)

    monkeypatch.setattr(folder._Arrivals, "look", counted)
    async with watched(tmp_path, look_s=0.01) as files:
        with (tmp_path / "slow.jpg").open("wb") as slow:
            slow.write(b"half")
            slow.flush()
            coming = asyncio.ensure_future(anext(files))
            until = looks + 5
            async with asyncio.timeout(20):
                while looks < until:  # noqa: ASYNC110 (polled with a deadline)
                    await asyncio.sleep(0.005)
            assert not coming.done()
        assert (await asyncio.wait_for(coming, 20)).name == "slow.jpg"


async def test_a_folder_that_is_gone_may_come_back(tmp_path: Path) -> None:
    directory = tmp_path / "share"
    told: list[str] = []
    directory.mkdir()
    async with watched(directory, look_s=0.01, told=told) as files:
        coming = asyncio.ensure_future(anext(files))
        (directory / "zz-begin.jpg").unlink()
        directory.rmdir()
        async with asyncio.timeout(20):
            while not told:  # noqa: ASYNC110 (polled with a deadline)
                await asyncio.sleep(0.005)
        directory.mkdir()
        (directory / "photo.jpg").write_bytes(b"whole")
        assert (await asyncio.wait_for(coming, 20)).name == "photo.jpg"
    assert len(told) == 1


async def test_no_such_folder(tmp_path: Path) -> None:
    files = new_files(tmp_path / "nothing", suffixes=SUFFIXES, tell=ignore)
    with pytest.raises(ConfigurationError, match="cannot be watched"):
        await anext(files)


async def test_a_hundred_at_once(tmp_path: Path) -> None:
    async with watched(tmp_path) as files:
        for number in range(100):
            (tmp_path / f"{number:03d}.jpg").write_bytes(b"x")
        assert {await name(files) for _ in range(100)} == {f"{n:03d}.jpg" for n in range(100)}
