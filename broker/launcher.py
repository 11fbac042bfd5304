"""Mosquitto as a child process: started, waited for, restarted, stopped.

The child cannot outlive its parent: on Linux the kernel sends it SIGTERM when the thread that started
it ends (PR_SET_PDEATHSIG), so start a broker from a thread that stays, as an event loop's is. It has
a session of its own, so that Ctrl-C in a terminal reaches the parent only, which then decides who
stops when.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pwd
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from broker.config import BrokerConfig
from shared.errors import BrokerError
from shared.files import write_whole
from shared.logs import get_log

_logger = get_log(__name__)

_ELSEWHERE: Final = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto")
"""Debian puts Mosquitto where an ordinary user's PATH does not look."""
_INSTALL: Final = (
    "install it (`apt-get install mosquitto`, `brew install mosquitto`), "
    "or name it in AMP4EC_MOSQUITTO, or use another broker with --broker"
)
_STOP_TIMEOUT_S: Final = 10.0
_PROBE_INTERVAL_S: Final = 0.02
_PORT_ATTEMPTS: Final = 8
_LOG_LINES: Final = 12
_PR_SET_PDEATHSIG: Final = 1

# MQTT 3.1.1, sections 3.1 and 3.14: a clean session without a name, and a goodbye.
_CONNECT: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"
_DISCONNECT: Final = b"\xe0\x00"
_CONNACK: Final = 0x20


def find_mosquitto() -> Path:
    """The Mosquitto to start: AMP4EC_MOSQUITTO, else on the PATH, else in the usual places.

    Raises:
        BrokerError: there is none; the message says how to get one.
    """
    named = os.environ.get("AMP4EC_MOSQUITTO")
    if named:
        if shutil.which(named) is None:
            raise BrokerError(
                "AMP4EC_MOSQUITTO names no program", expected="a Mosquitto broker", got=named
            )
        return Path(named)
    for candidate in ("mosquitto", *_ELSEWHERE):
        found = shutil.which(candidate)
        if found is not None:
            return Path(found)
    raise BrokerError(f"there is no Mosquitto on this machine: {_INSTALL}")


class Broker:
    """A Mosquitto of our own.

    `async with Broker(port=0, directory=path) as broker` starts it and waits until it answers;
    leaving stops it. The port is kept over `restart`, `kill` and `start`.

    Args:
        directory: For its configuration, its log, and what it saves. Made when missing.
        port: The port to listen on; 0 for any that is free.
        config: Everything else; its port and persistence directory are replaced, the latter unless
            it is None (nothing saved).
        log_to_stderr: Let it write to our standard error and not to `mosquitto.log`.
        start_timeout_s: How long it may take until it answers.
    """

    def __init__(
        self,
        *,
        directory: Path | str,
        port: int = 0,
        config: BrokerConfig | None = None,
        log_to_stderr: bool = False,
        start_timeout_s: float = 10.0,
    ) -> None:
        self._directory = Path(directory)
        self._config = config if config is not None else BrokerConfig()
        self._wanted_port = port
        self._port = port
        self._log_to_stderr = log_to_stderr
        self._start_timeout_s = start_timeout_s
        self._websocket_port = self._config.websocket_port
        self._process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start where any would do."""
        return self._port

    @property
    def websocket_port(self) -> int | None:
        """The port for MQTT over WebSockets; None also where this Mosquitto has none."""
        return self._websocket_port

    @property
    def url(self) -> str:
        """How to reach it from this machine."""
        host = _reachable(self._config.bind)
        scheme = "mqtt" if self._config.security is None else "mqtts"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            BrokerError: it does not run.
        """
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    @property
    def log_file(self) -> Path:
        """Where it writes, unless to standard error."""
        return self._directory / "mosquitto.log"

    async def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            BrokerError: there is no Mosquitto, the port is taken, or it does not start; the message
                carries the last lines of its log.
        """
        if self.running:
            raise BrokerError("this broker runs already", got=f"process {self.pid}")
        program = find_mosquitto()
        self._directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._port == 0:
                self._port = _free_port(self._config.bind)
            try:
                await self._start_once(program)
            except _PortTakenError:
                # Somebody was quicker between our look for a free port and Mosquitto's taking it.
                if self._wanted_port or attempt == _PORT_ATTEMPTS:
                    raise
                self._port = 0
            else:
                return

    async def stop(self) -> None:
        """Stop it so that it saves what it holds; nothing when it does not run."""
        if not self.running:
            return
        process = self._running_process()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            _logger.warning("mosquitto does not stop, and is killed", pid=process.pid)
            await self.kill()

    async def kill(self) -> None:
        """End it without giving it time to save, as a crash would."""
        process = self._running_process()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def restart(self) -> None:
        """Stop it, and start it again on the same port."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Wait until it ends; its exit status, negative for a signal."""
        return await self._running_process().wait()

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        await self.stop()

    def _running_process(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise BrokerError("this broker was never started")
        return self._process

    async def _start_once(self, program: Path) -> None:
        _check_free(self._config.bind, self._port)
        config_file = self._directory / "mosquitto.conf"
        # It may hold the password of a bridge.
        write_whole(config_file, self._rendered().encode(), mode=0o600)
        with contextlib.ExitStack() as files:
            output = (
                None
                if self._log_to_stderr
                else files.enter_context(self.log_file.open("ab", buffering=0))
            )
            begin = self.log_file.stat().st_size if output is not None else 0
            self._process = await asyncio.create_subprocess_exec(
                program,
                "-c",
                config_file,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # One system call and nothing allocated, so safe beside other threads.
                preexec_fn=_die_with(os.getpid()),
            )
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._answering(begin)
        except TimeoutError:
            await self.kill()
            raise BrokerError(
                f"mosquitto did not answer within {self._start_timeout_s:g} s"
                f"{self._last_lines(begin)}"
            ) from None
        except BaseException:
            if self.running:
                await self.kill()
            raise
        await self._check_websockets()

    def _rendered(self) -> str:
        # As root Mosquitto would become another user, who may not even reach our directory.
        user = pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() == 0 else None
        return replace(
            self._config,
            port=self._port,
            websocket_port=self._websocket_port,
            persistence_dir=(
                None if self._config.persistence_dir is None else str(self._directory.resolve())
            ),
            user=self._config.user or user,
        ).render()

    async def _answering(self, log_begin: int) -> None:
        process = self._running_process()
        while True:
            if process.returncode is not None:
                lines = self._last_lines(log_begin)
                if "Address already in use" in lines:
                    raise _PortTakenError(self._port)
                raise BrokerError(f"mosquitto ended with status {process.returncode}{lines}")
            tls = self._config.security is not None
            if await _answers(_reachable(self._config.bind), self._port, tls=tls):
                return
            await asyncio.sleep(_PROBE_INTERVAL_S)

    async def _check_websockets(self) -> None:
        """A Mosquitto built without them skips the listener; see whether it is there."""
        if self._websocket_port is None:
            return
        try:
            _, writer = await asyncio.open_connection(
                _reachable(self._config.bind), self._websocket_port
            )
        except OSError:
            _logger.warning("this Mosquitto has no WebSockets", port=self._websocket_port)
            self._websocket_port = None
        else:
            writer.close()
            await writer.wait_closed()

    def _last_lines(self, begin: int) -> str:
        if self._log_to_stderr or not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(begin)
            lines = file.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "".join(f"\n  {line}" for line in lines)


class _PortTakenError(BrokerError):
    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} is in use",
            expected="a free port: end that program, or choose another with --port",
            got="a port that another program listens on",
        )


def run_foreground(
    config: BrokerConfig,
    *,
    on_ready: Callable[[Broker], None] | None = None,
    start_timeout_s: float = 10.0,
) -> int:
    """Run a broker until SIGINT or SIGTERM; 0, or its own status if it ended by itself.

    Its log goes to standard error. It saves into `config.persistence_dir`. `on_ready` is called once
    it answers.

    Raises:
        BrokerError: it does not start.
    """
    return asyncio.run(_foreground(config, on_ready, start_timeout_s))


async def _foreground(
    config: BrokerConfig, on_ready: Callable[[Broker], None] | None, start_timeout_s: float
) -> int:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    with tempfile.TemporaryDirectory(prefix="amp4ec-broker-") as scratch:
        async with Broker(
            directory=config.persistence_dir or scratch,
            port=config.port,
            config=config,
            log_to_stderr=True,
            start_timeout_s=start_timeout_s,
        ) as broker:
            if on_ready is not None:
                on_ready(broker)
            ended = asyncio.create_task(broker.wait(), name="broker: ended")
            stop = asyncio.create_task(asked_to_stop.wait(), name="broker: asked to stop")
            await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not ended.done():
                await broker.stop()
                await ended
                return 0
            return ended.result()


async def _answers(host: str, port: int, *, tls: bool) -> bool:
    """Whether an MQTT broker answers there. Any CONNACK will do, also one that refuses us."""
    context = None
    if tls:
        # It is our own child that is asked whether it is there, and it is told nothing.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, ssl.SSLError):
        return False
    try:
        writer.write(_CONNECT)
        header = await reader.readexactly(4)
        writer.write(_DISCONNECT)
    except (OSError, asyncio.IncompleteReadError):
        return False
    else:
        return header[0] == _CONNACK
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bind, bind)  # noqa: S104


def _check_free(bind: str, port: int) -> None:
    """Say that a port is taken before somebody else's broker answers our probe there."""
    try:
        _bind(bind, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _PortTakenError(port) from None
        raise BrokerError(f"cannot listen on {bind} port {port}: {error.strerror}") from error


def _free_port(bind: str) -> int:
    with _bind(bind, 0) as sock:
        port: int = sock.getsockname()[1]
        return port


def _bind(bind: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        bind or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # As Mosquitto does: connections that have ended do not hold the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if port:
            # With SO_REUSEADDR a bind beside a listener may pass; a listen does not.
            sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def _die_with(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: the child may not load a library, only call into one.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the kernel knew

    return in_child
