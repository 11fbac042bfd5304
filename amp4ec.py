"""AMP4EC: one deep-learning model over many small devices, by plain MQTT.

::

    from amp4ec import Client

    async with Client("mqtt://localhost:1883") as client:
        result = await client.infer("mobilenet_v2", "cat.jpg")
        print(result.top[0].label, result.latency_s)
"""

from shared.bus import BrokerUrl
from shared.client import Client, ClusterStatus, Image, NodeView, Result
from shared.errors import (
    Amp4ecError,
    BrokerUnreachableError,
    ConfigurationError,
    ErrorCode,
    JobError,
)
from shared.messages.job import Label, TraceEntry

__all__ = [
    "Amp4ecError",
    "BrokerUnreachableError",
    "BrokerUrl",
    "Client",
    "ClusterStatus",
    "ConfigurationError",
    "ErrorCode",
    "Image",
    "JobError",
    "Label",
    "NodeView",
    "Result",
    "TraceEntry",
]
