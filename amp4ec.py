"""AMP4EC: one deep-learning model over many small devices, by plain MQTT.

One job, and its answer::

    from amp4ec import SyncClient

    with SyncClient("mqtt://localhost:1883") as client:
        result = client.infer("mobilenet_v2", "cat.jpg")
        print(result.best.label, result.latency_s, result.nodes)

The same with asyncio::

    from amp4ec import Client

    async with Client("mqtt://localhost:1883") as client:
        result = await client.infer("mobilenet_v2", "cat.jpg")

Both have the same methods:

- `infer`: one input: a path, a file's bytes, a PIL image, a NumPy array, or arrays by name;
- `infer_batch`: several in one job;
- `stream`: one after the other, several under way, answers in order: folders, cameras (`latest=True`);
- `status`: who is there, and what runs where.

`Result` has the labels (`top`, `best`), the raw outputs (`tensors`, where asked for), the way the job took
(`trace`, `nodes`, `latency_s`), and whether it is `exact` or `cached`. What goes wrong is an `Amp4ecError`::

    Amp4ecError
    ├── JobError                  the cluster refused or failed the job: `code` is an ErrorCode
    │   └── JobTimeoutError          no answer within `timeout_s`; a TimeoutError, too
    ├── BrokerUnreachableError    nobody answers at the broker's address
    │   └── BrokerTimeoutError       it was lost, and not back within `timeout_s`; a TimeoutError, too
    └── ConfigurationError        an argument that makes no sense, or a client that is not connected

`help(Client.infer)` and `help(Client.stream)` have the arguments.
"""

from shared.bus import BrokerUrl
from shared.client import (
    Client,
    ClusterStatus,
    Image,
    Input,
    NodeView,
    Result,
    Streamed,
    SyncClient,
)
from shared.errors import (
    Amp4ecError,
    BrokerTimeoutError,
    BrokerUnreachableError,
    ConfigurationError,
    ErrorCode,
    JobError,
    JobTimeoutError,
)
from shared.messages.job import Label, TraceEntry

__all__ = [
    "Amp4ecError",
    "BrokerTimeoutError",
    "BrokerUnreachableError",
    "BrokerUrl",
    "Client",
    "ClusterStatus",
    "ConfigurationError",
    "ErrorCode",
    "Image",
    "Input",
    "JobError",
    "JobTimeoutError",
    "Label",
    "NodeView",
    "Result",
    "Streamed",
    "SyncClient",
    "TraceEntry",
]
