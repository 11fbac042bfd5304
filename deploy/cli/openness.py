"""Who can reach a broker, and a plain word to those who open one to others."""

from __future__ import annotations

from deploy.cli.output import note
from shared.bus.url import BrokerUrl, is_loopback


def warn_of_plain_text(broker: BrokerUrl) -> None:
    """Say what a plain connection to another machine means, and what to do about it."""
    if broker.tls or is_loopback(broker.host):
        return
    note(
        f"warning: {broker} is plain MQTT to another machine: whoever is on the way reads inputs and "
        "answers, and may say what runs here; `amp4ec broker init` makes a closed broker, `amp4ec "
        "join-token` the way in"
    )
