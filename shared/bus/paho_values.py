"""Between our values and paho's, for the control face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from shared.bus.limits import LONGEST_EXPIRY_S
from shared.bus.message import NO_PROPERTIES, Properties

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

MAX_INFLIGHT = 10
"""Publications waiting for their acknowledgement on one connection; more wait in paho's queue.

A broker may end a connection that exceeds the receive maximum it announced. paho can only set its
limit before connecting, so this is the smallest default among common brokers (HiveMQ 10, Mosquitto
20, EMQX 32, AWS IoT 100). At 0.3 ms a round trip it allows 30,000 messages per second.
"""


def connect_properties(
    *, session_expiry_s: int, receive_maximum: int, maximum_packet_bytes: int
) -> PahoProperties:
    """What CONNECT says about the session (MQTT 5, section 3.1.2.11)."""
    properties = PahoProperties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = min(session_expiry_s, LONGEST_EXPIRY_S)
    properties.ReceiveMaximum = receive_maximum
    properties.MaximumPacketSize = maximum_packet_bytes
    return properties


def maximum_packet_bytes(connack: PahoProperties | None) -> int | None:
    """The largest packet that this broker takes; None where it sets no limit (MQTT 5, section 3.2.2.3.6)."""
    maximum: int | None = getattr(connack, "MaximumPacketSize", None)
    return maximum


def to_paho(
    properties: Properties | None, packet_type: int = PacketTypes.PUBLISH
) -> PahoProperties | None:
    """Our properties as paho's; None where there is nothing to say (paho's cost 5 us and more)."""
    if properties is None or properties == NO_PROPERTIES:
        return None
    result = PahoProperties(packet_type)  # type: ignore[no-untyped-call]
    if properties.response_topic is not None:
        result.ResponseTopic = properties.response_topic
    if properties.correlation_data is not None:
        result.CorrelationData = properties.correlation_data
    if properties.content_type is not None:
        result.ContentType = properties.content_type
    if properties.user:
        result.UserProperty = list(properties.user)
    if properties.expiry_s is not None:
        result.MessageExpiryInterval = min(properties.expiry_s, LONGEST_EXPIRY_S)
    return result


def loss(reason: ReasonCode) -> str:
    """Why a connection ended or was refused, in words."""
    # paho's stand-in for a connection that just broke; the broker itself gave no reason.
    return "the connection broke" if reason.value == 0x80 else f"the broker said: {reason}"
