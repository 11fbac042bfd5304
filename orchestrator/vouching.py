"""The orchestrator's part in who vouches for what: its keys, and what it takes of others.

On an open cluster there are no keys, and everything is taken.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.announcer import Announcer
from orchestrator.core.cluster_events import Tell
from shared.bus import BrokerUrl, Message
from shared.errors import ConfigurationError, ForgedError
from shared.logs import get_log
from shared.pipeline_mac import PipelineKeys
from shared.signing import Admission, Signed, Signer, signer_of

log = get_log(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """What the orchestrator's token holds; None each on an open cluster."""

    signer: Signer | None
    pipelines: PipelineKeys | None


def keys_of(broker: BrokerUrl, root: str) -> Keys:
    """The keys in the token of the broker's address.

    Raises:
        ConfigurationError: it is somebody else's: nobody would obey; or `cryptography` is missing.
    """
    credentials = broker.credentials
    signer = signer_of(credentials)
    if credentials is None:
        return Keys(None, None)
    if signer is None or signer.certificate.role != "orchestrator" or credentials.secret is None:
        raise ConfigurationError(
            "the join token is not an orchestrator's: no agent would obey",
            expected="DIR/tokens/orchestrator, or one by `amp4ec join-token NAME --role orchestrator`",
            got=f"the token of {broker.username}",
        )
    return Keys(signer, PipelineKeys(bytes.fromhex(credentials.secret), root))


class Vouching:
    """Takes what somebody vouches for who may. What it refuses is counted, logged and put on `event`."""

    def __init__(self, admission: Admission, counters: Counter[str], announcer: Announcer) -> None:
        self.closed = admission.closed
        self._admission = admission
        self._counters = counters
        self._announcer = announcer

    def accepts(self, name: str, message: Message) -> bool:
        """Whether to believe a message of the table's row `name`."""
        try:
            self.check(name, message)
        except ForgedError:
            return False
        return True

    def check(self, name: str, message: Message) -> Signed | None:
        """The same for who wants to know whose word it is; None on an open cluster.

        Raises:
            ForgedError: it is not to be believed; it was counted and told.
        """
        try:
            return self._admission.check(name, message)
        except ForgedError as error:
            self.refuse(f"message on {message.topic}", error.reason, str(error))
            raise

    def refuse(self, what: str, reason: str, text: str) -> None:
        """Count, log and tell that something was not believed; a flood of it is told ever more rarely."""
        kind = f"forged_{reason}"
        self._counters[kind] += 1
        if self._counters[kind].bit_count() == 1:
            times = self._counters[kind]
            line = f"a {what} was not believed: {text}" + (f" ({times} so far)" * (times > 1))
            self._announcer.happened(Tell("message_forged", line, reason=reason))
