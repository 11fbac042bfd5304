"""As much of Home Assistant as MQTT discovery needs: it checks documents, and renders what entities show.

Written from the documentation of its MQTT integration (device discovery payload, availability, MQTT sensor,
MQTT binary sensor) and of its sensor entity (which units a device class takes), with the libraries that it
uses itself: voluptuous, and Jinja's sandbox. In one point it is stricter: a key that it does not know is an
error here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import voluptuous as vol
from jinja2 import TemplateSyntaxError, make_logging_undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.bus import topic_matches

log = logging.getLogger(__name__)

OBJECT_ID = re.compile(r"[a-zA-Z0-9_-]+")
UNITS: dict[str, set[str]] = {
    "data_size": {"B", "kB", "MB", "GB", "KiB", "MiB", "GiB"},
    "duration": {"ms", "s", "min", "h", "d"},
    "temperature": {"°C", "°F", "K"},
}
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=make_logging_undefined(log))


def _template(text: Any) -> str:
    try:
        _ENVIRONMENT.parse(vol.Schema(str)(text))
    except TemplateSyntaxError as error:
        raise vol.Invalid(f"{text}: {error}") from None
    return str(text)


def _topic(text: Any) -> str:
    if not isinstance(text, str) or not text or set(text) & set("+#\0"):
        raise vol.Invalid(f"no topic of one thing: {text!r}")
    return text


def _fits(sensor: dict[str, Any]) -> dict[str, Any]:
    """What the sensor entity asks of class, unit and options together."""
    kind, unit = sensor.get("device_class"), sensor.get("unit_of_measurement")
    if kind == "enum":
        if not sensor.get("options") or unit or sensor.get("state_class"):
            raise vol.Invalid("an enum has options, and neither unit nor state class")
    elif "options" in sensor:
        raise vol.Invalid("only an enum has options")
    elif kind in UNITS and unit not in UNITS[kind]:
        raise vol.Invalid(f"{kind} is not measured in {unit}")
    return sensor


AVAILABILITY = [{vol.Required("topic"): _topic, vol.Required("value_template"): _template}]
_ENTITY = {
    vol.Required("name"): vol.All(str, vol.Length(min=1)),
    vol.Required("unique_id"): vol.All(str, vol.Length(min=1)),
    vol.Required("state_topic"): _topic,
    vol.Required("value_template"): _template,
    vol.Optional("availability"): AVAILABILITY,
    vol.Optional("icon"): vol.Match(r"mdi:[a-z0-9-]+$"),
    vol.Optional("entity_category"): vol.In(["config", "diagnostic"]),
    vol.Optional("expire_after"): vol.All(int, vol.Range(min=1)),
    vol.Optional("json_attributes_topic"): _topic,
    vol.Optional("json_attributes_template"): _template,
}
SENSOR = vol.All(
    vol.Schema(
        {
            vol.Required("p"): "sensor",
            **_ENTITY,
            vol.Optional("device_class"): vol.In([*UNITS, "enum"]),
            vol.Optional("unit_of_measurement"): str,
            vol.Optional("state_class"): vol.In(["measurement", "total", "total_increasing"]),
            vol.Optional("suggested_display_precision"): vol.All(int, vol.Range(min=0)),
            vol.Optional("options"): [str],
        }
    ),
    _fits,
)
BINARY_SENSOR = vol.Schema(
    {
        vol.Required("p"): "binary_sensor",
        **_ENTITY,
        vol.Required("device_class"): vol.In(["connectivity", "running", "problem"]),
        vol.Required("payload_on"): str,
        vol.Required("payload_off"): str,
    }
)
DEVICE = vol.Schema(
    {
        vol.Required("dev"): {
            vol.Required("ids"): vol.All([str], vol.Length(min=1)),
            vol.Required("name"): str,
            vol.Optional("mf"): str,
            vol.Optional("mdl"): str,
            vol.Optional("hw"): str,
            vol.Optional("sw"): str,
        },
        vol.Required("o"): {vol.Required("name"): str, vol.Optional("sw"): str},
        vol.Required("cmps"): vol.All(
            {vol.Match(r"[a-z]+$"): vol.Any(SENSOR, BINARY_SENSOR)}, vol.Length(min=1)
        ),
    }
)


@dataclass
class Entity:
    """What the user sees. `state` None is unknown."""

    config: dict[str, Any]
    device: str
    state: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """By availability topic."""

    @property
    def available(self) -> bool:
        wanted = [each["topic"] for each in self.config.get("availability", [])]
        return all(self.said.get(topic) == "online" for topic in wanted)


class HomeAssistant:
    """Feed it every message of a broker with `take`."""

    def __init__(self, prefix: str = "homeassistant") -> None:
        self.prefix = prefix
        self.devices: dict[str, dict[str, Any]] = {}
        """Documents by object id."""
        self.entities: dict[str, Entity] = {}
        """By unique id."""
        self._retained: dict[str, bytes] = {}

    @property
    def by_name(self) -> dict[tuple[str, str], Entity]:
        """By the names of device and entity."""
        return {(each.device, each.config["name"]): each for each in self.entities.values()}

    def take(self, topic: str, payload: bytes) -> None:
        """A message, retained or live."""
        self._retained[topic] = payload
        if topic_matches(f"{self.prefix}/device/+/config", topic):
            self._discovered(topic.split("/")[-2], payload)
        for entity in list(self.entities.values()):
            self._offer(entity, topic, payload)

    def _discovered(self, object_id: str, payload: bytes) -> None:
        assert OBJECT_ID.fullmatch(object_id), object_id
        known = self.devices.pop(object_id, None)
        for component in {} if known is None else known["cmps"].values():
            del self.entities[component["unique_id"]]
        if not payload:
            return
        document = DEVICE(json.loads(payload))
        self.devices[object_id] = document
        for component in document["cmps"].values():
            assert component["unique_id"] not in self.entities, component["unique_id"]
            entity = Entity(component, document["dev"]["name"])
            self.entities[component["unique_id"]] = entity
            # It subscribes, and is shown what is retained; here everything is, as the last of its topic.
            for topic, last in list(self._retained.items()):
                self._offer(entity, topic, last)

    def _offer(self, entity: Entity, topic: str, payload: bytes) -> None:
        config = entity.config
        for each in config.get("availability", []):
            if each["topic"] == topic:
                entity.said[topic] = render(each["value_template"], payload)
                assert entity.said[topic] in ("online", "offline")
        if config["state_topic"] == topic:
            entity.state = self._state(config, render(config["value_template"], payload))
        if config.get("json_attributes_topic") == topic:
            said = json.loads(render(config["json_attributes_template"], payload))
            assert isinstance(said, dict)
            entity.attributes = said

    def _state(self, config: dict[str, Any], text: str) -> str | None:
        if text == "None":
            return None
        assert 0 < len(text) <= 255
        if "state_class" in config or "unit_of_measurement" in config:
            float(text)
        if "options" in config:
            assert text in config["options"]
        if config["p"] == "binary_sensor":
            assert text in (config["payload_on"], config["payload_off"])
        return text


def render(template: str, payload: bytes) -> str:
    """What a template makes of a message; a variable that is printed and not there is logged."""
    values: dict[str, Any] = {"value": payload.decode()}
    with contextlib.suppress(ValueError):
        values["value_json"] = json.loads(payload)
    return _ENVIRONMENT.from_string(template).render(values)


def topics_of(document: dict[str, Any]) -> Iterator[str]:
    """All that a document reads."""
    for component in document["cmps"].values():
        yield component["state_topic"]
        yield from (each["topic"] for each in component.get("availability", []))
