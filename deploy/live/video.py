"""Frames of a recording, a camera or a stream, by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import av
import av.error
from PIL.Image import Image, fromarray

from deploy.live.video_errors import explain, is_device, shown
from shared.bus import Backoff
from shared.errors import Amp4ecError, ConfigurationError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OPEN_S, READ_S = 10.0, 10.0
"""How long a network source may be silent."""
_QUALITY = 90
_LONGEST_WAIT_S = 30.0
_STABLE_S = 5.0
_NETWORK = frozenset(
    {"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "rtp", "srt"}
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame. `number` counts what the source showed, `time_s` is its time there, `at` when it was read."""

    number: int
    time_s: float
    at: datetime
    picture: VideoFrame
    shrink: int | None

    def image(self) -> Image:
        """Upright, and with a shorter side of at most `shrink` pixels."""
        width, height = self.picture.width, self.picture.height
        if self.shrink is not None and (shorter := min(width, height)) > self.shrink:
            width, height = (round(side * self.shrink / shorter) for side in (width, height))
        image = fromarray(self.picture.to_ndarray(format="rgb24", width=width, height=height))
        turned = self.picture.rotation % 360
        return image.rotate(turned, expand=True) if turned else image

    def jpeg(self) -> bytes:
        """`image` as a JPEG file."""
        file = io.BytesIO()
        self.image().save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


class Video:
    """A source of frames: a file, `-` (standard input), `/dev/video0`, or the address of a stream.

    Attributes:
        live: whether it goes on for ever: a device, a stream without an end. When it is lost, it is opened
            again.
        read: frames that were decoded so far; `picked` those of them that were given out.
        damaged: packets that could not be decoded.
        reconnections: how often a live source was opened again.
    """

    def __init__(
        self,
        source: str,
        *,
        fps: float | None = None,
        paced: bool = True,
        shrink: int | None = None,
        tell: Callable[[str], None],
        backoff: Backoff | None = None,
    ) -> None:
        """Open it.

        Args:
            source: see above.
            fps: at most so many frames per second, by the source's own time; None: all.
            paced: a recording is played at its own speed, instead of as fast as frames are taken.
            shrink: the most pixels of a frame's shorter side; None: as they are.
            tell: gets a line for people when a live source is lost, and when it is back.
            backoff: of the attempts to open a lost one again.

        Raises:
            ConfigurationError: there is no such file or device, or it is no video.
            Amp4ecError: a stream that cannot be had now.
        """
        self._source = source
        self._period_s = 0.0 if fps is None else 1.0 / fps
        self._shrink = shrink
        self._tell = tell
        self._backoff = backoff or Backoff(first_s=0.5, limit_s=_LONGEST_WAIT_S)
        self._stopped = threading.Event()
        self._container = self._open()
        network = urlsplit(source).scheme.lower() in _NETWORK
        # A single picture has no duration either.
        one = self._container.format.name.endswith("_pipe")
        endless = network and self._container.duration is None and not one
        self.live = endless or is_device(source)
        # What comes from a pipe or the network's end comes at its own pace.
        self._paced = paced and not self.live and source != "-"
        self.read = self.picked = self.damaged = self.reconnections = 0

    @property
    def name(self) -> str:
        """The source, without a password."""
        return shown(self._source)

    def stop(self) -> None:
        """End the frames soon; from any thread."""
        self._stopped.set()

    def frames(self) -> Iterator[Frame]:
        """The frames, until the end of a recording, or `stop`. Blocks between them.

        Raises:
            Amp4ecError: a recording that cannot be read on.
        """
        begin = time.monotonic()
        while True:
            opened = time.monotonic()
            try:
                yield from self._frames_of(self._container, begin)
                why = "it ended"
            except av.error.FFmpegError as error:
                if not self.live:
                    raise explain(self._source, error) from error
                why = error.strerror or type(error).__name__
            finally:
                self._container.close()
            if not self.live or self._stopped.is_set():
                return
            if time.monotonic() - opened > _STABLE_S:
                self._backoff.reset()
            self._tell(f"{self.name} is lost: {why}; trying again")
            if not self._reopen():
                return
            self.reconnections += 1
            self._tell(f"{self.name} is back")

    def _reopen(self) -> bool:
        """Whether it is open again; not, when it was stopped meanwhile."""
        while not self._stopped.wait(self._backoff.next()):
            try:
                self._container = self._open()
            except Amp4ecError:  # as before
                continue
            return True
        return False

    def _open(self) -> InputContainer:
        try:
            container = self._open_container()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise explain(self._source, error) from error
        if not container.streams.video:
            container.close()
            raise ConfigurationError(
                f"{self.name} has no pictures", expected="a video", got="sound or data only"
            )
        return container

    def _open_container(self) -> InputContainer:
        if is_device(self._source):
            return av.open(self._source, "r", format="v4l2", timeout=(OPEN_S, READ_S))
        scheme = urlsplit(self._source).scheme.lower()
        if scheme in _NETWORK:
            # By UDP, frames of a busy network arrive torn.
            options = {"rtsp_transport": "tcp"} if scheme in ("rtsp", "rtsps") else {}
            return av.open(self._source, "r", options=options, timeout=(OPEN_S, READ_S))
        if self._source == "-":
            return av.open("pipe:0", "r")
        if "://" in self._source:
            raise av.error.ProtocolNotFoundError(0, "an unknown protocol", self._source)
        # A file's name may have a colon, which FFmpeg would read as a protocol.
        return av.open(str(Path(self._source).absolute()), "r")

    def _frames_of(self, container: InputContainer, begin: float) -> Iterator[Frame]:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise explain(self._source, None)
        stream.thread_type = "AUTO"
        first_s: float | None = None
        due_s = 0.0
        for picture in self._decoded(container, stream):
            if self._stopped.is_set():
                return
            number, self.read = self.read, self.read + 1
            now_s = time.monotonic() - begin
            at_s = now_s
            if not self.live and picture.time is not None:
                first_s = picture.time if first_s is None else first_s
                at_s = picture.time - first_s
            # Half a millisecond of grace: 1/30 is no sum of a container's ticks.
            if at_s + 5e-4 < due_s:
                continue
            due_s += self._period_s
            if due_s <= at_s:  # after a gap, not all at once
                due_s = at_s + self._period_s
            if self._paced and self._stopped.wait(max(at_s - now_s, 0.0)):
                return
            self.picked += 1
            yield Frame(number, at_s, datetime.now(UTC), picture, self._shrink)

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.error.InvalidDataError:  # the next key frame mends it
                self.damaged += 1
                continue
            yield from pictures
