"""Frames of recordings and cameras; the network camera is a real RTSP server, the recordings real files."""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import av.error
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy.live.video import Frame, Video
from deploy.live.video_errors import explain, shown
from shared.bus import Backoff
from shared.errors import Amp4ecError, ConfigurationError
from tests.fakes.footage import number_of, record, record_sound
from tests.fakes.rtsp import Camera


def ignore(text: str) -> None:
    """Nobody is told."""


def seen(frame: Frame) -> int:
    """The number that the picture shows."""
    return number_of(float(np.asarray(frame.image()).mean()))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second at 30 frames."""
    return record(tmp_path_factory.mktemp("footage") / "second.mp4")


def test_every_frame_of_a_recording(second: Path) -> None:
    video = Video(str(second), paced=False, tell=ignore)
    frames = list(video.frames())
    assert not video.live
    assert [seen(frame) for frame in frames] == list(range(30))
    assert [frame.number for frame in frames] == list(range(30))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 30 for n in range(30)])
    assert (video.read, video.picked, video.damaged) == (30, 30, 0)


@pytest.mark.parametrize(("fps", "step"), [(10, 3), (15, 2), (30, 1), (1000, 1), (1, 30)])
def test_frames_per_second(second: Path, fps: float, step: int) -> None:
    video = Video(str(second), fps=fps, paced=False, tell=ignore)
    assert [seen(frame) for frame in video.frames()] == list(range(0, 30, step))
    assert video.read == 30


def test_a_rate_that_does_not_divide_the_recordings_own(second: Path) -> None:
    video = Video(str(second), fps=7, paced=False, tell=ignore)
    times = [frame.time_s for frame in video.frames()]
    assert len(times) == 7
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(times))


def test_a_recording_is_played_at_its_own_speed(tmp_path: Path) -> None:
    """Never faster, that is; how much slower depends on the machine."""
    begin = time.monotonic()
    video = Video(str(record(tmp_path / "short.mp4", frames=10)), tell=ignore)
    for frame in video.frames():
        assert time.monotonic() - begin >= frame.time_s


def test_stop_ends_the_wait_for_the_next(tmp_path: Path) -> None:
    slow = record(tmp_path / "slow.mp4", frames=2, fps=1)
    video = Video(str(slow), tell=ignore)
    frames = video.frames()
    next(frames)
    video.stop()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("size", "shrink", "expected"),
    [
        ((320, 180), 90, (160, 90)),
        ((180, 320), 90, (90, 160)),
        ((64, 48), 90, (64, 48)),
        ((320, 180), None, (320, 180)),
    ],
)
def test_frames_are_made_smaller_but_never_larger(
    tmp_path: Path, size: tuple[int, int], shrink: int | None, expected: tuple[int, int]
) -> None:
    path = record(tmp_path / "frames.mp4", frames=1, size=size)
    (frame,) = Video(str(path), paced=False, shrink=shrink, tell=ignore).frames()
    assert frame.image().size == expected
    assert frame.jpeg()[:3] == b"\xff\xd8\xff"


def test_a_telephone_held_upright_is_shown_upright(tmp_path: Path) -> None:
    """Its file says by how much to turn the picture: here 90 degrees clockwise."""
    path = record(tmp_path / "phone.mp4", frames=1)
    data = path.read_bytes()
    as_it_is = bytes.fromhex(
        "00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000"
    )
    turned = bytes.fromhex(
        "00000000 00010000 00000000 ffff0000 00000000 00000000 00300000 00000000 40000000"
    )
    at = data.index(as_it_is, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    (frame,) = Video(str(path), paced=False, tell=ignore).frames()
    assert frame.image().size == (48, 64)


@pytest.mark.parametrize("ending", ["mkv", "avi", "ts", "mov"])
def test_other_containers(tmp_path: Path, ending: str) -> None:
    path = record(tmp_path / f"footage.{ending}", codec="mjpeg" if ending == "avi" else "mpeg4")
    frames = list(Video(str(path), paced=False, tell=ignore).frames())
    assert [seen(frame) for frame in frames] == list(range(30))


def test_a_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "rec.mp4").rename(tmp_path / "12:30:00.mp4")
    assert len(list(Video("12:30:00.mp4", paced=False, tell=ignore).frames())) == 30


def _text(path: Path) -> Path:
    path.write_text("no video at all, though long enough to be looked at" * 100)
    return path


def _unknown_codec(path: Path) -> Path:
    data = record(path.with_suffix(".mp4"), frames=2).read_bytes()
    path.write_bytes(data.replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
    return path


def _cut_off(path: Path) -> Path:
    path.write_bytes(record(path.with_suffix(".mp4")).read_bytes()[:500])
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "there is no file"),
        (_text, "is no video that can be read"),
        (_cut_off, "is no video that can be read"),
        (_folder, "is a folder.*--watch"),
        (lambda path: record_sound(path.with_suffix(".mp4")), "has no pictures"),
        (_unknown_codec, "the codec of its pictures.*ffmpeg -i"),
        (lambda _: Path("/dev/video77"), "there is no device /dev/video77.*plugged in"),
        (lambda _: Path("/dev/null"), "v4l2-ctl"),
    ],
    ids=["missing", "text", "cut-off", "folder", "sound", "codec", "no-device", "other-device"],
)
def test_what_is_no_video_says_what_to_do(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    path = make(tmp_path / "source")
    with pytest.raises(ConfigurationError, match=words):
        list(Video(str(path), paced=False, tell=ignore).frames())


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_damage_ends_in_fewer_frames_or_an_error_of_ours(
    second: Path, tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    data = bytearray(second.read_bytes())
    for _ in range(chance.randint(1, 200)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path_factory.mktemp("damaged") / "damaged.mp4"
    path.write_bytes(data)
    try:
        frames = list(Video(str(path), paced=False, tell=ignore).frames())
    except Amp4ecError:
        return
    assert len(frames) <= 40


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transport stream, as cameras send them."""
    return record(tmp_path_factory.mktemp("footage") / "stream.ts", codec="mpeg2video")


def test_a_camera_that_is_lost_is_found_again(stream: Path) -> None:
    told: list[str] = []
    with Camera(stream) as camera:
        backoff = Backoff(first_s=0.01, limit_s=0.02)
        video = Video(camera.url, tell=told.append, backoff=backoff)
        assert video.live
        with closing(video.frames()) as frames:  # type: ignore[type-var]
            assert 0 <= seen(next(frames)) < 30
            camera.cut()
            while not video.reconnections:
                next(frames)
            next(frames)
        assert camera.shown == 2
    assert "is lost" in told[0]
    assert told[-1].endswith("is back")
    assert not any("secret" in line for line in told)


def test_a_camera_that_stays_away_can_be_given_up(stream: Path) -> None:
    with Camera(stream) as camera:
        video = Video(
            camera.url,
            tell=lambda text: video.stop() if "lost" in text else None,
            backoff=Backoff(first_s=0.01, limit_s=0.02),
        )
        frames = video.frames()
        next(frames)
        camera.cut()
        for _ in frames:
            pass
        assert video.reconnections == 0


class Mjpeg(http.server.BaseHTTPRequestHandler):
    """As small cameras do it: pictures without an end at `/stream`, a single one at `/picture`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (80, 80, 80)).save(file, "JPEG")
        picture = file.getvalue()
        self.send_response(200)
        if self.path == "/picture":
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        with contextlib.suppress(OSError):  # the viewer has gone
            while True:
                self.wfile.write(head.encode() + picture + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def mjpeg() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mjpeg) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_small_camera_on_the_network(mjpeg: str) -> None:
    video = Video(f"{mjpeg}/stream", tell=ignore)
    assert video.live
    frames = video.frames()
    assert [seen(next(frames)) for _ in range(3)] == [9, 9, 9]
    video.stop()
    assert list(frames) == []


def test_a_single_picture_on_the_network(mjpeg: str) -> None:
    video = Video(f"{mjpeg}/picture", tell=ignore)
    assert not video.live
    assert len(list(video.frames())) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401 Unauthorized", "refuses the login"),
        ("404 Not Found", "knows no such stream"),
    ],
)
def test_a_camera_that_refuses(stream: Path, status: str, words: str) -> None:
    with (
        Camera(stream, status=status) as camera,
        pytest.raises(ConfigurationError, match=words) as raised,
    ):
        Video(camera.url, tell=ignore)
    assert "secret" not in str(raised.value)


def test_no_camera_at_that_address(stream: Path) -> None:
    with Camera(stream) as camera:
        url = camera.url
    with pytest.raises(Amp4ecError, match="nobody listens") as raised:
        Video(url, tell=ignore)
    assert "secret" not in str(raised.value)


def test_an_address_of_another_kind() -> None:
    with pytest.raises(ConfigurationError, match="address that is not known"):
        Video("gopher://camera/stream", tell=ignore)


def test_a_pipe_cannot_go_back() -> None:
    """As it would have to for a long MP4 whose index is at its end."""
    damaged = av.error.InvalidDataError(1, "moov atom not found")
    assert "faststart" in str(explain("-", damaged))
    assert "faststart" not in str(explain("movie.mp4", damaged))


def test_passwords_are_not_shown() -> None:
    assert shown("rtsp://me:secret@camera:554/a") == "rtsp://me:***@camera:554/a"
    assert shown("rtsp://camera/a") == "rtsp://camera/a"
    assert shown("a@b:c.mp4") == "a@b:c.mp4"
