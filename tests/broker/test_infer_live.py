"""`amp4ec infer` as a process, on folders, recordings and cameras, with a stand-in for the cluster."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from broker.launcher import Broker
from shared.bus import BrokerUrl, Message
from shared.codec import encode_json
from shared.errors import ErrorCode
from tests.broker.conftest import until
from tests.broker.stand import JPEG, Stand, answer, error
from tests.fakes.footage import record
from tests.fakes.rtsp import Camera

LIMIT_S = 60


@asynccontextmanager
async def infer(
    url: BrokerUrl,
    *arguments: str | Path,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int = asyncio.subprocess.PIPE,
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "deploy.cli", "infer", "m", *map(str, arguments)),
        *("--broker", str(url)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=stdin,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
    assert line, "it has ended"
    document: dict[str, object] = json.loads(line)
    return document


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, list[str], list[str]]:
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert not any(line.startswith(b"Traceback") for line in err.splitlines()), err.decode()
    return process.returncode, (out or b"").decode().splitlines(), err.decode().splitlines()


async def test_a_folder_is_watched_until_ctrl_c(
    url: BrokerUrl, stand: Stand, tmp_path: Path
) -> None:
    photos, seen = tmp_path / "photos", tmp_path / "seen"
    photos.mkdir()
    Image.new("RGB", (400, 300), "green").save(photos / "old.jpg")
    async with infer(
        url, "--watch", photos, "--existing", "--jsonl", "--annotate", seen, "--top", "1"
    ) as process:
        assert (await line_of(process))["file"] == str(photos / "old.jpg")
        Image.new("RGB", (400, 300), "red").save(photos / "new.png")
        document = await line_of(process)
        assert document["file"] == str(photos / "new.png")
        assert document["status"] == "ok"
        assert document["top"] == [{"index": 281, "label": "tabby", "probability": 0.5}]
        with Image.open(str(document["picture"])) as picture:
            assert picture.size[0] == 400
            assert picture.size[1] > 300
        (photos / "no-picture.jpg").write_bytes(JPEG)
        assert "picture" not in await line_of(process)
        process.send_signal(signal.SIGINT)
        code, _, notes = await end_of(process)
    assert code == 0
    assert notes[-1].startswith("3 files in ")
    assert "3 answered" in notes[-1]
    assert sorted(path.name for path in seen.iterdir()) == ["new.jpg", "old.jpg"]


async def test_every_frame_of_a_recording_is_answered(
    url: BrokerUrl, stand: Stand, tmp_path: Path
) -> None:
    movie = record(tmp_path / "movie.mp4", frames=30, size=(320, 240))

    def script(message: Message) -> list[bytes]:
        # One fails, which does not end it, and is said in its place.
        if len(stand.requests) == 7:
            return [error(message, ErrorCode.INTERNAL)]
        return [encode_json(answer(message))]

    stand.script = script
    seen = tmp_path / "seen"
    async with infer(
        url, "--camera", movie, "--fps", "15", "--policy", "lossless", "--json",
        "--annotate", seen, "--keep", "3", "--shrink", "120",
    ) as process:  # fmt: skip
        code, lines, notes = await end_of(process)
    documents = [json.loads(line) for line in lines]
    assert [document["frame"] for document in documents] == list(range(0, 30, 2))
    assert [document["time_s"] for document in documents] == [
        round(n / 30, 3) for n in range(0, 30, 2)
    ]
    assert sum(document["status"] == "error" for document in documents) == 1
    assert code == 1
    assert "15 frames in " in notes[-1]
    assert "14 answered" in notes[-1]
    assert "1 failed (internal 1), 30 read" in notes[-1]
    assert sorted(path.name for path in seen.iterdir()) == [
        f"frame-{n:06d}.jpg" for n in (24, 26, 28)
    ]
    properties = stand.requests[0].properties
    assert properties.content_type == "image/jpeg"
    assert properties.user_value("policy") is None


async def test_frames_that_gave_way_are_counted(
    url: BrokerUrl, stand: Stand, tmp_path: Path
) -> None:
    movie = record(tmp_path / "movie.mp4", frames=10)

    def script(message: Message) -> list[bytes]:
        if len(stand.requests) % 2:
            return [error(message, ErrorCode.SUPERSEDED)]
        return [encode_json(answer(message))]

    stand.script = script
    async with infer(url, "--camera", movie) as process:
        code, lines, notes = await end_of(process)
    assert code == 0
    assert all("tabby 50.0%" in line for line in lines)
    dropped = 10 - len(lines)
    assert dropped >= 3
    assert f"{len(lines)} answered" in notes[-1]
    assert f"{dropped} dropped for newer ones" in notes[-1] or f"{dropped - 1} dropped" in notes[-1]
    assert stand.requests[0].properties.user_value("policy") == "latest"


async def test_a_camera_and_a_broker_that_come_and_go(
    url: BrokerUrl, stand: Stand, broker: Broker, tmp_path: Path
) -> None:
    footage = record(tmp_path / "stream.ts", codec="mpeg2video")
    with Camera(footage) as camera:
        async with infer(url, "--camera", camera.url, "--fps", "50", "--jsonl") as process:
            first = await line_of(process)
            assert first["status"] == "ok"
            assert "secret" not in str(first["camera"])
            await asyncio.to_thread(camera.cut)
            async with asyncio.timeout(LIMIT_S):
                while camera.shown < 2:
                    await line_of(process)
            await broker.kill()
            await broker.start()
            asked = len(stand.requests)
            async with asyncio.timeout(LIMIT_S):
                while len(stand.requests) < asked + 20:
                    await line_of(process)
            process.send_signal(signal.SIGTERM)
            code, _, notes = await end_of(process)
    assert code == 0
    assert any("is lost" in line for line in notes)
    assert "1 times reconnected" in notes[-1]


async def test_a_reader_that_has_seen_enough(url: BrokerUrl, stand: Stand, tmp_path: Path) -> None:
    movie = record(tmp_path / "movie.mp4", frames=300)
    reading, writing = os.pipe()
    async with infer(url, "--camera", movie, "--jsonl", stdout=writing) as process:
        os.close(writing)
        with os.fdopen(reading) as lines:
            assert "tabby" in await asyncio.to_thread(lines.readline)
        code, _, notes = await end_of(process)
    assert code == 0
    assert not any("ipe" in line for line in notes)


async def test_a_movie_from_a_pipe(url: BrokerUrl, stand: Stand, tmp_path: Path) -> None:
    movie = record(tmp_path / "movie.ts")
    async with infer(
        url, "--camera", "-", "--policy", "lossless", stdin=asyncio.subprocess.PIPE
    ) as process:
        out, _ = await asyncio.wait_for(process.communicate(movie.read_bytes()), LIMIT_S)
    assert (process.returncode, len(out.splitlines())) == (0, 30)


@pytest.mark.parametrize("way", ["file", "camera", "watch"])
async def test_a_model_that_is_not_served(
    url: BrokerUrl, stand: Stand, tmp_path: Path, way: str
) -> None:
    movie = record(tmp_path / "movie.mp4")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    stand.script = lambda message: [error(message, ErrorCode.UNKNOWN_MODEL)]
    how: dict[str, list[str | Path]] = {
        "file": [tmp_path / "a.jpg"],
        "camera": ["--camera", movie],
        "watch": ["--watch", tmp_path, "--existing"],
    }
    async with infer(url, *how[way]) as process:
        code, lines, notes = await end_of(process)
    assert code == 1
    assert lines == []
    assert "unknown_model" in notes[-1]


async def test_several_files_off_a_terminal(url: BrokerUrl, stand: Stand, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.jpg")
    async with infer(url, tmp_path, "--jsonl", "--annotate", tmp_path / "seen") as process:
        code, lines, notes = await end_of(process)
    assert code == 0
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["0.jpg", "1.jpg", "2.jpg"]
    assert notes[-1].startswith("3 files in ")
    assert len(list((tmp_path / "seen").iterdir())) == 3


async def test_results_go_where_they_are_sent_also_beside_a_bar(
    url: BrokerUrl, stand: Stand, tmp_path: Path
) -> None:
    """On a terminal the bar is drawn on standard error; a redirected standard output has the results only."""
    for number in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.jpg")
    ours, theirs = pty.openpty()
    results = tmp_path / "results"
    with results.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "deploy.cli", "infer", "m", str(tmp_path)),
            *("--broker", str(url)),
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "TERM": "xterm",
                "COLUMNS": "80",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=theirs,
        )
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while True:
                try:
                    shown.extend(terminal.read(4096))
                except OSError:  # the other end is closed
                    return

    await asyncio.wait_for(asyncio.to_thread(read), LIMIT_S)
    assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0
    assert results.read_text().count("tabby") == 3
    assert b"3/3" in shown
    assert b"tabby" not in shown


async def test_nothing_is_lost_between_two_looks(
    url: BrokerUrl, stand: Stand, tmp_path: Path
) -> None:
    """A hundred files that are written while others are answered: each answered once."""
    photos = tmp_path / "photos"
    photos.mkdir()
    async with infer(url, "--watch", photos, "--existing", "--jsonl") as process:
        (photos / "000.jpg").write_bytes(JPEG)
        await line_of(process)
        for number in range(1, 100):
            (photos / f"{number:03d}.jpg").write_bytes(JPEG + bytes([number]))
        names = [Path(str((await line_of(process))["file"])).name for _ in range(99)]
        await until(lambda: len(stand.requests) >= 100)
        process.send_signal(signal.SIGINT)
        code, rest, _ = await end_of(process)
    assert code == 0
    assert sorted(names) == [f"{number:03d}.jpg" for number in range(1, 100)]
    assert rest == []
