"""The bus: MQTT with two faces, one for the event loop and one for the thread that runs a stage.

Nothing else imports aiomqtt or paho.
"""

from shared.bus.backoff import Backoff
from shared.bus.control import MqttControlBus
from shared.bus.data import MqttDataBus
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
