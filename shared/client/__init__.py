"""The client: an inference job in, a typed result out, over any MQTT 5 broker.

Needs the bare install only: no torch, no Pillow.
"""

from shared.client.client import Client
from shared.client.inputs import Image, Input
from shared.client.results import Result
from shared.client.status import ClusterStatus, NodeView
from shared.client.streaming import Streamed
from shared.client.sync import SyncClient

__all__ = [
    "Client",
    "ClusterStatus",
    "Image",
    "Input",
    "NodeView",
    "Result",
    "Streamed",
    "SyncClient",
]
