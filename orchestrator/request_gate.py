"""Requests of operators, before they are read: on a closed cluster each is signed, new and not seen before.

What was seen is kept in a file, so that nobody can wait for our restart to send a request once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.announcer import Announcer, error_body
from orchestrator.core.replays import WINDOW_MS, Freshness, Replays
from orchestrator.operators import transaction_of
from orchestrator.vouching import Vouching
from shared.bus import Message
from shared.codec import decode_json, encode_json
from shared.errors import ErrorCode, ForgedError, JobError, ProtocolError
from shared.files import write_whole
from shared.logs import get_log

log = get_log(__name__)

Take = Callable[[str, bytes | bytearray], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    signer: str
    transaction: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    seen: list[_Seen] = field(default_factory=list)


class RequestGate:
    """Hands requests on to `take`, with their verb.

    Args:
        vouching: says who vouches for a request.
        announcer: tells who asked why it was refused.
        take: gets what may pass.
        path: the file.
    """

    def __init__(self, vouching: Vouching, announcer: Announcer, take: Take, path: Path) -> None:
        self._vouching = vouching
        self._announcer = announcer
        self._take = take
        self._path = path
        self._replays = Replays(self._read() if vouching.closed else {})

    def take(self, verb: str, message: Message) -> None:
        """A message on `request/{verb}`; on an open cluster everybody may ask."""
        transaction = transaction_of(message.payload)
        self._announcer.asked(transaction, message.properties)
        try:
            signed = self._vouching.check("request", message)
        except ForgedError as error:
            text = (
                "this cluster takes signed requests only: use a token made by "
                "`amp4ec join-token NAME --role operator`"
            )
            self._refuse(verb, message, text, error.expected, error.got)
            return
        if signed is None:
            self._take(verb, message.payload)
            return
        now_ms = time.time_ns() // 1_000_000
        match self._replays.judge(now_ms, signed.by.key, transaction, signed.at_ms):
            case Freshness.NEW:
                self._write()
                self._take(verb, message.payload)
            case Freshness.REPEATED:
                # No answer: who asked has theirs, or gets it; the broker may have delivered it twice.
                text = f"{verb} of {signed.by.name} came again as it was"
                self._vouching.refuse("request", "repeated", text)
            case Freshness.STALE:
                got = (
                    "no time"
                    if signed.at_ms is None
                    else f"{(now_ms - signed.at_ms) / 1e3:.0f} s ago"
                )
                text = f"{verb} of {signed.by.name} was signed {got}"
                self._vouching.refuse("request", "stale", text)
                self._refuse(
                    verb,
                    message,
                    "the clocks differ: the request was signed at another time than now; set both by NTP",
                    f"within {WINDOW_MS // 1000} s by the orchestrator's clock",
                    got,
                )

    def _refuse(
        self, verb: str, message: Message, text: str, expected: str | None, got: str | None
    ) -> None:
        error = JobError(ErrorCode.FORBIDDEN, text, expected=expected, got=got)
        self._announcer.failed(verb, transaction_of(message.payload), error_body(error))

    def _read(self) -> dict[tuple[str, str], int]:
        try:
            document = decode_json(self._path.read_bytes(), _Document)
        except FileNotFoundError:
            return {}
        except (OSError, ProtocolError) as error:
            log.error(
                "the requests that were seen cannot be read: one may be repeated once more",
                path=self._path,
                error=error,
            )
            return {}
        return {(each.signer, each.transaction): each.at_ms for each in document.seen}

    def _write(self) -> None:
        seen = [
            _Seen(signer=signer, transaction=transaction, at_ms=at_ms)
            for (signer, transaction), at_ms in self._replays.seen.items()
        ]
        try:
            # On the event loop, and rarely. Against processes that are killed, as `ServedFile` is.
            write_whole(self._path, encode_json(_Document(seen=seen)), mode=0o600, durable=False)
        except OSError as error:
            log.error("the requests that were seen cannot be written", path=self._path, error=error)
