"""Everything that AMP4EC raises on purpose.

::

    Amp4ecError
    ├── JobError                  a job ended in an error answer; `code` is one of `ErrorCode`
    │   └── JobTimeoutError          none came in the time that the caller gave it; a TimeoutError
    ├── ProtocolError             a message that does not say what its topic promises
    │   └── ForgedError              one on a closed cluster that nobody vouches for who may
    ├── GraphError                a model graph that is malformed or uses an operator not on the list
    ├── ModelError                a model that cannot be found, traced, loaded, or given its weights
    ├── PlanError                 no plan satisfies the constraints; says which and what is nearest
    ├── ArtifactError             a blob that is missing, damaged, too large, or cannot be stored
    │   └── StorageFullError         one for which there is no room: the disk is full, or the cache
    ├── StageError                a stage that cannot be loaded or run
    ├── BrokerError               Mosquitto cannot be started or found
    │   ├── BrokerUnreachableError   nobody answers at the broker's address
    │   │   └── BrokerTimeoutError      it was lost, and not back in the time a caller gave; a TimeoutError
    │   └── NotPermittedError        a closed broker does not let this login say that
    └── ConfigurationError        an option, URL or file that makes no sense

Fields, not only text: `expected` and `got` say what should have come and what came.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

ForgedReason = Literal["unsigned", "unknown_signer", "wrong_role", "bad_signature", "bad_mac"]
"""Why a message is not believed: nobody signed it; somebody whom the authority does not vouch for; somebody
who may not say this; it is not what was signed; or it was not sealed with its pipeline's key."""


class ErrorCode(StrEnum):
    """The closed list of codes that an error answer may carry."""

    BAD_INPUT = "bad_input"
    """The input is not what the model takes: format, shape, dtype or values."""
    UNKNOWN_MODEL = "unknown_model"
    """No model of that name is served."""
    TOO_LARGE = "too_large"
    """The payload is larger than a job may be."""
    OVERLOADED = "overloaded"
    """The queue is full; try again after `retry_after_s`."""
    SUPERSEDED = "superseded"
    """A newer input of the same client came before this one had its turn: the job's policy was `latest`."""
    DEADLINE = "deadline"
    """The answer could not be had before the job's deadline."""
    UNAVAILABLE = "unavailable"
    """The model is known, but no node can run it now and none came in time."""
    POISON = "poison"
    """Two nodes died of the input, one after the other: it is set aside and not tried again."""
    FORBIDDEN = "forbidden"
    """The sender may not do that."""
    INTERNAL = "internal"
    """A stage failed for a reason of its own; the message says which and how."""


class Amp4ecError(Exception):
    """What AMP4EC raises on purpose: a `message`, and what was `expected` and `got` where that helps."""

    def __init__(
        self, message: str, *, expected: str | None = None, got: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        return "; ".join(parts)


class JobError(Amp4ecError):
    """A job ended in an error answer."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, expected=expected, got=got)
        self.code = code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"


class JobTimeoutError(JobError, TimeoutError):
    """No answer came within `timeout_s`, though the broker is there; `waited_for` says who owed it.

    `code` is `deadline` where it was the model's answer, `unavailable` where the orchestrator is gone.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        waited_for: Literal["answer", "orchestrator"],
        timeout_s: float,
    ) -> None:
        super().__init__(code, message)
        self.waited_for = waited_for
        self.timeout_s = timeout_s


class ProtocolError(Amp4ecError):
    """A message that does not say what its topic promises."""


class ForgedError(ProtocolError):
    """A message that nobody vouches for who may."""

    def __init__(
        self,
        reason: ForgedReason,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
    ) -> None:
        super().__init__(message, expected=expected, got=got)
        self.reason = reason


class GraphError(Amp4ecError):
    """A model graph that is malformed or uses an operator not on the list."""


class ModelError(Amp4ecError):
    """A model that cannot be found, traced, loaded, or given its weights."""


class PlanError(Amp4ecError):
    """No plan satisfies the constraints."""


class ArtifactError(Amp4ecError):
    """A blob that is missing, damaged, too large, or cannot be stored."""


class StorageFullError(ArtifactError):
    """There is no room for a blob: `on_disk`, or else among those that the cache may hold."""

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        on_disk: bool = False,
    ) -> None:
        super().__init__(message, expected=expected, got=got)
        self.on_disk = on_disk


class StageError(Amp4ecError):
    """A stage that cannot be loaded or run."""


class BrokerError(Amp4ecError):
    """Mosquitto cannot be started or found."""


class NotPermittedError(BrokerError):
    """This login may not say what it wanted to on a closed cluster: another token is needed."""


class BrokerUnreachableError(BrokerError):
    """Nobody answers at the broker's address."""


class BrokerTimeoutError(BrokerUnreachableError, TimeoutError):
    """The connection to the broker was lost, and not back within `timeout_s`."""

    waited_for: Literal["broker"] = "broker"

    def __init__(
        self, message: str, *, timeout_s: float, expected: str | None = None, got: str | None = None
    ) -> None:
        super().__init__(message, expected=expected, got=got)
        self.timeout_s = timeout_s


class ConfigurationError(Amp4ecError):
    """An option, URL or file that makes no sense."""
