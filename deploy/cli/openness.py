"""Who can reach a broker, and a plain word to those who open one to others."""

from __future__ import annotations

from shared.bus.url import BrokerUrl, is_loopback
from shared.logs import get_log

log = get_log(__name__)


def warn_of_plain_text(broker: BrokerUrl) -> None:
    """Say what a plain connection to another machine means, and what to do about it."""
    if broker.tls or is_loopback(broker.host):
        return
    log.warning(
        "plain MQTT to another machine: whoever is on the way reads inputs and answers, and may say what "
        "runs here; `amp4ec broker init` makes a closed broker, `amp4ec join-token` the way in",
        broker=broker,
    )
