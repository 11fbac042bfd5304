"""The client: an inference job in, a typed result out, over any MQTT 5 broker.

Needs the bare install only: no torch, no Pillow.
"""

from shared.client.client import Client
from shared.client.inputs import Image
from shared.client.results import Result
from shared.client.status import ClusterStatus, NodeView

__all__ = ["Client", "ClusterStatus", "Image", "NodeView", "Result"]
