"""Writes PROTOCOL.md from the code's own tables, so that it cannot say anything else.

::

    python -m shared.protocol            # print it
    python -m shared.protocol --write    # replace shared/PROTOCOL.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import topics
from shared.errors import ErrorCode
from shared.messages import (
    artifact,
    cordon,
    health,
    job,
    life,
    model,
    node,
    operation,
    settings,
    signature,
    stage,
)
from shared.tensor import DTYPES

PATH = Path(__file__).with_name("PROTOCOL.md")
MODULES = (node, stage, model, job, artifact, operation, cordon, life, health, settings, signature)

INTRODUCTION = """\
# The AMP4EC protocol

Generated from the code by `python -m shared.protocol --write`; a test fails when it is stale.

Everything is below the root topic `{root}` (configurable with `--root`). Any MQTT client can take
part: MQTT 5 is best (response topic, correlation data), MQTT 3.1.1 works for jobs too. What may be
binary lives under `pipeline/#`, `artifact/#`, `model/+/infer/#` and `result/#`; all else is JSON for
people to read.

- Messages between our own parts carry `v`; an unknown version is refused, unknown extra fields are ignored.
  What clients see carries none and only grows.
- What people may read begins with `text`, a sentence: the fields say the same to programs. An event begins
  with `at` and `text`, and leaves out what is null or empty.
- Ranges are half-open, `[start, stop)`. Units are in the names: `_s` seconds, `_ms` milliseconds, `_bytes`.
- A node's `incarnation` grows with every start of its agent: a last will of an earlier life changes nothing.
- A pipeline's `generation` is part of its topic: a stale stage gets nothing.
- A job is identified by the user property `job`, else by the correlation data, else by an id of ours. A
  repeat of (response topic, job) within 10 minutes gets the first answer again.
- A job without a response topic, or with one outside `result/`, is dropped, counted and put on `event`.
- A stage's agent proves its subscription with an empty message to its own activation topic; empty messages
  there mean nothing else.
- The broker should allow any number of messages in flight per client (Mosquitto: `max_inflight_messages 0`):
  jobs are acknowledged with their answers, and twenty that wait would lock out the results they wait for.
- A payload larger than its row of the table allows is dropped unread, counted and logged; a job's own limit
  is in `orchestrator/state`, and beyond it the answer is `too_large`. Of control messages that come faster
  than their sender may send, the orchestrator drops what is beyond, and says so once on `event`.
- `Shape` has up to 8 sizes, `Tensors` are up to 1,024 `WireTensor` by name, `InputTensors` up to 64
  `TensorInput`, a `Trace` is up to 1,024 `StageTime`, `Images` up to 1,024 files.
- Tensors: `dtype` is one of {dtypes}; `data` is little-endian in C order of `shape`.

## Who vouches for a message

On a closed cluster (`amp4ec broker init`) the table below says whose word a message needs; without it, it
is dropped, counted, and put on `event`. On an open one nothing is checked.

| vouched for by | user properties (MQTT 5) | checked by |
|---|---|---|
| orchestrator, operator | `signer` (JSON `Certificate`), `signature` (Ed25519, hexadecimal), for requests \
`signed_at_ms` (wall time) | agents, the orchestrator |
| pipeline | `mac`: 16 bytes of nonce and 16 of tag, in hexadecimal | stages, the orchestrator |

- Signed is `amp4ec message 1`, NUL, `signed_at_ms` or nothing, NUL, the topic's length in bytes, NUL, the
  topic, the payload; numbers are decimal. A certificate's signature is over `amp4ec certificate 1`, NUL,
  role, NUL, name, NUL, the 32 bytes of the key.
- A request holds for five minutes, and once: who repeats it signs again, later.
- The tag is Poly1305 of the payload under a key for it alone: BLAKE2b-256 of nonce and topic, keyed with the
  `key` of the stage's assignment. Empty messages, which only prove a subscription, carry none.

## Sending a job

| user property (MQTT 5) | meaning |
|---|---|
| `job` | the client's own id for the job |
| `deadline_ms` | answer within so many milliseconds, or `deadline` (the message's expiry does the same) |
| `accept` | `application/msgpack`: the answer in msgpack with the raw output tensors |

The content type says what the payload is (`image/jpeg` and its like, `application/x-npy`,
`application/msgpack`, `application/json`); without one the first bytes decide. An image goes through the
model's own transform, a tensor is taken as it is.
"""


def render() -> str:
    """The whole document."""
    return "\n".join([*_head(), *_topics(), *_codes(), *_messages()]) + "\n"


def _head() -> Iterator[str]:
    yield INTRODUCTION.format(root=topics.DEFAULT_ROOT, dtypes=", ".join(f"`{d}`" for d in DTYPES))


def _topics() -> Iterator[str]:
    yield "## Topics\n"
    yield "| topic | from | to | QoS | retained | vouched for by | payload | at most | what |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for spec in topics.TABLE:
        retained = "yes" if spec.retained else ""
        yield (
            f"| `{spec.pattern}` | {spec.sender} | {spec.receiver} | {spec.qos} | {retained} "
            f"| {spec.vouched_by or ''} | {spec.payload} | {_size(spec.max_bytes)} | {spec.text} |"
        )
    yield ""


def _size(size_bytes: int) -> str:
    for unit, name in ((topics.MIB, "MiB"), (topics.KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.0f} {name}"
    return f"{size_bytes} bytes"


def _codes() -> Iterator[str]:
    source = inspect.getsource(ErrorCode)
    yield "## Error codes\n"
    yield "| code | meaning |"
    yield "|---|---|"
    for name, text in re.findall(r'= "(\w+)"\n\s+"""(.*?)"""', source, re.DOTALL):
        yield f"| `{name}` | {' '.join(text.split())} |"
    yield ""


def _messages() -> Iterator[str]:
    yield "## Messages\n"
    for module in MODULES:
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                yield from _message(value)


def _message(class_: Any) -> Iterator[str]:
    yield f"### {class_.__name__}\n"
    yield inspect.cleandoc(class_.__doc__ or "") + "\n"
    yield "| field | type | default |"
    yield "|---|---|---|"
    for field in dataclasses.fields(class_):
        type_ = str(field.type).replace("|", "\\|")
        yield f"| `{field.name}` | `{type_}` | {_default(field)} |"
    yield ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return "empty" if field.default_factory in (list, dict) else "its defaults"
    return "required"


def main(arguments: list[str]) -> int:
    """Print the document, or write it with `--write`."""
    if arguments == ["--write"]:
        PATH.write_text(render())
    else:
        sys.stdout.write(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
