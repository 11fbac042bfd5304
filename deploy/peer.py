"""Child processes that are measured: a module of ours at the end of a pipe, a JSON line each way.

The child's side is `serve_peer`: it says `ready` once, and then answers each line until its input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from deploy.cgroup import CpuLimit
from deploy.supervisor import child_environment, follow_parent
from shared.codec import decode_json, encode_json
from shared.errors import Amp4ecError

T = TypeVar("T")
_READY = b"ready\n"
_LINE_BYTES = 16 * 1024 * 1024
_STOP_S = 5.0


class PeerEndedError(Amp4ecError):
    """A child ended before it answered; it wrote the reason to our standard error."""


@dataclass(slots=True)
class Peer:
    """A running child. Use with `async with`: leaving ends it, and takes its cgroup away."""

    name: str
    process: asyncio.subprocess.Process
    limit: CpuLimit | None = None

    @classmethod
    async def start(cls, module: str, *arguments: str, limit: CpuLimit | None = None) -> Self:
        """Run `python -m MODULE ARGUMENTS`, within `limit`, and wait until it is ready.

        Raises:
            PeerEndedError: it ended instead.
        """
        line = [sys.executable, "-m", module, *arguments]
        process = await asyncio.create_subprocess_exec(
            *(line if limit is None else limit.wrap(line)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            limit=_LINE_BYTES,
            start_new_session=True,
        )
        peer = cls(module, process, limit)
        try:
            if await peer._line() != _READY:
                raise PeerEndedError(f"{module} is not ready")
        except BaseException:
            await peer.stop()
            raise
        return peer

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def ask(self, request: object, answer: type[T]) -> T:
        """Send a request; its answer.

        Raises:
            PeerEndedError: it ended instead.
            ProtocolError: the answer is not what was expected.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(encode_json(request) + b"\n")
        await self.process.stdin.drain()
        return decode_json(await self._line(), answer)

    async def stop(self) -> None:
        """Close its input, and kill it when that does not end it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        if self.limit is not None:
            await asyncio.to_thread(self.limit.remove)

    async def __aenter__(self) -> Self:
        """Itself, already started."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        await self.stop()

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            status = await self.process.wait()
            raise PeerEndedError(f"{self.name} ended", got=f"exit status {status}")
        return line


def be_ready() -> None:
    """In the child: die with the parent, and say that work may begin."""
    follow_parent()
    sys.stdout.buffer.write(_READY)
    sys.stdout.flush()


def serve_peer(request: type[T], answer: Callable[[T], object]) -> None:
    """In the child: answer each request until the parent closes the pipe."""
    be_ready()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(encode_json(answer(decode_json(line, request))) + b"\n")
        sys.stdout.flush()


def wait_for_end() -> None:
    """In the child: block until the parent closes the pipe."""
    sys.stdin.buffer.read()
