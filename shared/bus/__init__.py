"""The bus: MQTT with two faces, one for the event loop and one for the thread that runs a stage.

Nothing else imports aiomqtt or paho. The faces that need them are imported when they are first asked for: a
command that only parses an address, or talks to nobody, waits for neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from shared.bus.backoff import Backoff
from shared.bus.faces import ConnectCallback, ControlBus, DataBus
from shared.bus.message import (
    NO_PROPERTIES,
    Handle,
    Message,
    Properties,
    Publication,
    Qos,
    topic_matches,
)
from shared.bus.url import BrokerUrl

if TYPE_CHECKING:
    from shared.bus.control import MqttControlBus
    from shared.bus.data import MqttDataBus

__all__ = [
    "NO_PROPERTIES",
    "Backoff",
    "BrokerUrl",
    "ConnectCallback",
    "ControlBus",
    "DataBus",
    "Handle",
    "Message",
    "MqttControlBus",
    "MqttDataBus",
    "Properties",
    "Publication",
    "Qos",
    "topic_matches",
]

_ON_DEMAND = {"MqttControlBus": "shared.bus.control", "MqttDataBus": "shared.bus.data"}


def __getattr__(name: str) -> object:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_DEMAND[name]), name)
