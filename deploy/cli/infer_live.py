"""`amp4ec infer --watch` and `--camera`: inputs that come by themselves, until Ctrl-C or their end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from deploy.cli.infer_output import Asked, Output, Tally, picture_in
from deploy.cli.options import CONNECT_S, Common
from deploy.cli.output import Progress, note
from deploy.live.folder import new_files
from shared.client import Client, Input, Streamed
from shared.errors import ErrorCode, JobError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from PIL.Image import Image

    from deploy.live.video import Frame, Video

T = TypeVar("T")

_HOPELESS = frozenset({ErrorCode.UNKNOWN_MODEL, ErrorCode.FORBIDDEN})
"""Where the first answer is one of these, no other is worth waiting for."""


class Feed(Protocol[T]):
    """Inputs that come by themselves."""

    what: str
    """They are: files, frames."""
    title: str
    window: int
    latest: bool
    often: bool
    """They come all the time."""

    def source(self) -> Iterable[T] | AsyncIterable[T]:
        """The inputs."""

    def input_of(self, given: T) -> Input:
        """What is sent; called in a thread."""

    def name_of(self, given: T) -> str:
        """For people."""

    def where(self, given: T) -> Mapping[str, object]:
        """For programs."""

    def picture_of(self, given: T) -> tuple[str, Callable[[], Image]] | None:
        """The name of its annotated picture, and what draws it; None: it is no picture."""

    def stop(self) -> None:
        """Nothing more is wanted."""

    def more(self) -> Iterator[str]:
        """What else belongs into the summary."""


class FolderFeed:
    """A folder's new files."""

    what = "files"
    window = 8
    latest = False
    often = False

    def __init__(self, directory: Path, suffixes: frozenset[str], *, existing: bool) -> None:
        self.title = f"watching {directory}"
        self._directory = directory
        self._suffixes = suffixes
        self._existing = existing

    def source(self) -> AsyncIterator[Path]:
        return new_files(
            self._directory, suffixes=self._suffixes, existing=self._existing, tell=note
        )

    def input_of(self, given: Path) -> Input:
        return given

    def name_of(self, given: Path) -> str:
        return given.name

    def where(self, given: Path) -> Mapping[str, object]:
        return {"file": str(given)}

    def picture_of(self, given: Path) -> tuple[str, Callable[[], Image]] | None:
        return picture_in(given)

    def stop(self) -> None:
        pass

    def more(self) -> Iterator[str]:
        return iter(())


class CameraFeed:
    """A camera's, a stream's or a recording's frames."""

    what = "frames"
    window = 4
    often = True

    def __init__(self, video: Video, *, latest: bool) -> None:
        self.title = f"reading {video.name}"
        self.latest = latest
        self._video = video

    def source(self) -> Iterator[Frame]:
        return self._video.frames()

    def input_of(self, given: Frame) -> Input:
        return given.jpeg()

    def name_of(self, given: Frame) -> str:
        if self._video.live:
            return given.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
        return f"{given.time_s:8.3f} s"

    def where(self, given: Frame) -> Mapping[str, object]:
        return {
            "camera": self._video.name,
            "frame": given.number,
            "time_s": round(given.time_s, 3),
            "at": given.at.isoformat(timespec="milliseconds"),
        }

    def picture_of(self, given: Frame) -> tuple[str, Callable[[], Image]]:
        if self._video.live:
            return given.at.astimezone().strftime("%Y%m%d-%H%M%S-%f")[:-3], given.image
        return f"frame-{given.number:06d}", given.image

    def stop(self) -> None:
        self._video.stop()

    def more(self) -> Iterator[str]:
        if self._video.read > self._video.picked:
            yield f"{self._video.read} read"
        if self._video.damaged:
            yield f"{self._video.damaged} damaged"
        if self._video.reconnections:
            yield f"{self._video.reconnections} times reconnected"


async def follow(feed: Feed[T], output: Output, common: Common, asked: Asked) -> int:
    """A feed's inputs to the cluster until its end, Ctrl-C or SIGTERM; the code to exit with.

    Raises:
        Amp4ecError: the source or the broker cannot be had, or the model is not served.
    """
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    run = _Run(feed, output, asked)
    work = asyncio.create_task(run.work(common), name="infer")
    ended = asyncio.create_task(told.wait(), name="signals")
    try:
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # a second one ends it at once
        feed.stop()
        ended.cancel()
        work.cancel()
        await asyncio.gather(work, ended, return_exceptions=True)
    if run.began:
        note(run.summary())
    if not work.cancelled():
        work.result()
    return 1 if run.failed else 0


class _Run(Generic[T]):
    """A feed's answers, as they come to the output and are counted."""

    def __init__(self, feed: Feed[T], output: Output, asked: Asked) -> None:
        self._feed = feed
        self._output = output
        self._asked = asked
        self.began = False
        self._tally = Tally(feed.what)
        self._next = 0
        self._dropped = 0

    @property
    def failed(self) -> bool:
        """Whether an input was not answered."""
        return bool(self._tally.failed)

    def summary(self) -> str:
        """What became of all so far, in a line."""
        return self._tally.summary(self._dropped, *self._feed.more())

    async def work(self, common: Common) -> None:
        """Until the end of the feed."""
        feed, asked = self._feed, self._asked
        async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:
            stream = client.stream(
                asked.model,
                feed.source(),
                image=feed.input_of,
                window=feed.window,
                latest=feed.latest,
                timeout_s=asked.timeout_s,
                deadline_s=asked.deadline_s,
            )
            self.began = True
            with Progress(f"{feed.title}, asking {asked.model}; Ctrl-C ends it") as progress:
                async with aclosing(stream):
                    async for item in stream:
                        await self._take(item)
                        if progress.on_terminal:
                            progress.count(self.summary())

    async def _take(self, item: Streamed[T]) -> None:
        self._dropped += item.index - self._next
        self._next = item.index + 1
        error = item.error
        if isinstance(error, JobError) and error.code in _HOPELESS and not self._tally.answered:
            raise error
        self._tally.take(item.outcome)
        name, image = self._feed.picture_of(item.input) or ("", None)
        await self._output.take(
            self._feed.name_of(item.input),
            self._feed.where(item.input),
            item.outcome,
            image,
            picture=name,
            often=self._feed.often,
        )
