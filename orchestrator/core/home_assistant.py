"""What Home Assistant is told of nodes and models: MQTT device discovery, one document for each.

A document names topics of ours and how to read them; no value is said twice. Source: Home Assistant's page of
its MQTT integration ("Device discovery payload", "Using availability topics"), and those of its MQTT sensors.
Templates are Jinja; what they make of a null is `None`, which Home Assistant shows as unknown.

A document depends on nothing that changes by itself, so that a successor announces the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.core.nodes import Node
from shared.messages.node import NodeState
from shared.topics import DEFAULT_ROOT, Topics

Document = dict[str, Any]

_MAKER: Final = "AMP4EC"
_EXPIRE_INTERVALS: Final = 5
_EXPIRE_LEAST_S: Final = 15
"""A value is unknown after so many intervals of telemetry, and not before so many seconds."""
_LONGEST_STATE: Final = 255
"""Characters that Home Assistant takes."""
_STATES: Final = ("serving", "loading", "unserved", "failed")

_NODE_IS: Final = "{{ 'online' if (value_json | default({})).state == 'online' else 'offline' }}"
_LEADER_IS: Final = (
    "{{ 'online' if (value_json | default({})).state in ('online', 'starting') else 'offline' }}"
)
_STAGES: Final = (
    "{% set text %}{% for each in value_json.stages %}{{ each.model }} stage {{ each.stage }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}{% endset %}"
    f"{{{{ (text | trim or 'idle')[:{_LONGEST_STATE}] }}}}"
)
_MEASURED: Final = "((value_json | default({})).measured | default({}))"


@dataclass(frozen=True, slots=True)
class Discovery:
    """Where and as what the devices of one cluster are announced.

    Args:
        prefix: Home Assistant's discovery prefix.
        topics: the cluster's; of another root than the default the ids are others, too.
        version: of this software.
    """

    prefix: str
    topics: Topics
    version: str

    @property
    def status_topic(self) -> str:
        """Where Home Assistant says that it has started (its birth message, by default)."""
        return f"{self.prefix}/status"

    @property
    def pattern(self) -> str:
        """A subscription to all documents, those of other programs too."""
        return f"{self.prefix}/device/+/config"

    def is_ours(self, topic: str) -> bool:
        """Whether a document there was made for this cluster."""
        return topic.startswith(f"{self.prefix}/device/{self._cluster}_")

    def documents(
        self, nodes: Iterable[Node], models: Iterable[str]
    ) -> Mapping[str, Document | None]:
        """By topic: what is to be announced; None leaves what is there, as of a node that is away.

        What is not in it is gone for good.
        """
        found: dict[str, Document | None] = {}
        for node in nodes:
            found[self._topic("node", node.name)] = self._node(node)
        for model in models:
            found[self._topic("model", model)] = self._model(model)
        return found

    def _node(self, node: Node) -> Document | None:
        state, telemetry = node.state, node.telemetry
        # A last will knows no hardware; and without telemetry it is not known which sensors there are.
        if state.state != "online" or telemetry is None:
            return None
        device = self._id("node", node.name)
        told = self.topics.topic("telemetry", node=node.name)
        born = self.topics.topic("node_state", node=node.name)
        expire_s = max(_EXPIRE_LEAST_S, math.ceil(_EXPIRE_INTERVALS * state.telemetry_interval_s))
        there = [{"topic": born, "value_template": _NODE_IS}]
        sampled = {"state_topic": told, "expire_after": expire_s, "availability": there}
        parts: Document = {
            "availability": {
                "p": "binary_sensor",
                "name": "Availability",
                "device_class": "connectivity",
                "entity_category": "diagnostic",
                "state_topic": born,
                "value_template": _NODE_IS,
                "payload_on": "online",
                "payload_off": "offline",
            },
            "cpu": {
                "p": "sensor",
                "name": "CPU",
                "icon": "mdi:cpu-64-bit",
                "unit_of_measurement": "%",
                "state_class": "measurement",
                "suggested_display_precision": 0,
                "value_template": "{{ value_json.cpu_percent }}",
                **sampled,
            },
            "memory": {
                "p": "sensor",
                "name": "Memory",
                "device_class": "data_size",
                "unit_of_measurement": "MB",
                "state_class": "measurement",
                "suggested_display_precision": 0,
                "value_template": "{{ (value_json.memory_used_bytes / 1e6) | round(1) }}",
                **sampled,
            },
            "stage": {
                "p": "sensor",
                "name": "Stage",
                "icon": "mdi:layers-outline",
                "value_template": _STAGES,
                **sampled,
            },
        }
        if telemetry.temperature_c is not None:
            parts["temperature"] = {
                "p": "sensor",
                "name": "Temperature",
                "device_class": "temperature",
                "unit_of_measurement": "°C",
                "state_class": "measurement",
                "value_template": "{{ value_json.temperature_c }}",
                **sampled,
            }
        described = {"name": node.name, "sw": state.version, **_hardware(state)}
        return self._document(device, described, parts)

    def _model(self, model: str) -> Document:
        device = self._id("model", model)
        state_topic = self.topics.topic("model_state", model=model)
        leader = self.topics.topic("orchestrator_state")
        there = {"availability": [{"topic": leader, "value_template": _LEADER_IS}]}
        last = (
            f"((value_json.models | default({{}}))['{model}'] | default({{}})).last | default(none)"
        )
        parts: Document = {
            "state": {
                "p": "sensor",
                "name": "State",
                "device_class": "enum",
                "options": list(_STATES),
                "state_topic": state_topic,
                "value_template": "{{ (value_json | default({})).state | default('unserved') }}",
                **there,
            },
            "throughput": {
                "p": "sensor",
                "name": "Throughput",
                "icon": "mdi:speedometer",
                "unit_of_measurement": "items/s",
                "state_class": "measurement",
                "suggested_display_precision": 1,
                "state_topic": state_topic,
                "value_template": f"{{{{ {_MEASURED}.throughput_per_s | default(0, true) }}}}",
                **there,
            },
            "latency": {
                "p": "sensor",
                "name": "Latency",
                "device_class": "duration",
                "unit_of_measurement": "ms",
                "state_class": "measurement",
                "suggested_display_precision": 0,
                "state_topic": state_topic,
                "value_template": f"{{% set s = {_MEASURED}.latency_s %}}"
                "{{ (s * 1000) | round(1) if s is number else none }}",
                **there,
            },
            "label": {
                "p": "sensor",
                "name": "Last label",
                "icon": "mdi:tag-outline",
                "state_topic": self.topics.topic("metrics"),
                "value_template": f"{{% set last = {last} %}}"
                f"{{{{ last.label[:{_LONGEST_STATE}] if last else none }}}}",
                "json_attributes_topic": self.topics.topic("metrics"),
                "json_attributes_template": f"{{{{ ({last} or {{}}) | tojson }}}}",
                **there,
            },
        }
        return self._document(device, {"name": model, "mdl": "served model"}, parts)

    def _document(self, device: str, described: Mapping[str, str], parts: Document) -> Document:
        for name, part in parts.items():
            part["unique_id"] = f"{device}_{name}"
        known = {key: value for key, value in described.items() if value}
        return {
            "dev": {"ids": [device], "mf": _MAKER, **known},
            "o": {"name": _MAKER, "sw": self.version},
            "cmps": parts,
        }

    def _topic(self, kind: str, name: str) -> str:
        return f"{self.prefix}/device/{self._id(kind, name)}/config"

    def _id(self, kind: str, name: str) -> str:
        return f"{self._cluster}_{kind}_{_plain(name)}"

    @property
    def _cluster(self) -> str:
        root = self.topics.root
        return "amp4ec" if root == DEFAULT_ROOT else f"amp4ec-{_digest(root)}"


def _hardware(state: NodeState) -> dict[str, str]:
    hardware = state.hardware
    if hardware is None:
        return {}
    size = f"{hardware.cpu:g} CPUs, {hardware.memory_bytes / 1e6:.0f} MB, {hardware.architecture}"
    return {"mdl": hardware.cpu_model or hardware.architecture, "hw": size}


def _plain(name: str) -> str:
    """As an id may stand in a discovery topic: `[a-zA-Z0-9_-]`; another name gets another one."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return plain if plain == name else f"{plain}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
