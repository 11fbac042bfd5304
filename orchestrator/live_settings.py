"""The settings that an operator changes while the orchestrator leads, and how they outlive it.

What was changed stands in the retained `orchestrator/info`, and in a file of our own for the day on which the
broker forgets; of the two the later one counts. Everything else is as the orchestrator was started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from orchestrator.announcer import Announcer
from orchestrator.core.cluster_events import Tell
from orchestrator.core.scheduler_settings import Form, Scheduler
from orchestrator.identity import own_version
from orchestrator.options import OrchestratorOptions
from orchestrator.outbox import Outbox
from shared.codec import convert, decode_json, encode_json, json_schema
from shared.errors import Amp4ecError, ErrorCode, JobError, ProtocolError
from shared.files import write_whole
from shared.logs import get_log
from shared.messages import Count, Term
from shared.messages.settings import OrchestratorInfo, SetRequest, Settings
from shared.sentences import worded
from shared.topics import VERBS

log = get_log(__name__)

NAMES = tuple(each.name for each in fields(Settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    root: str
    term: Term = 0
    revision: Count = 0
    changed: dict[str, Any] = field(default_factory=dict)


class LiveSettings:
    """One per time of leading, in its event loop.

    Args:
        options: as the orchestrator was started.
        path: the file; its folder must exist when something is changed.
        term: the one under which we lead, and `before` that of the leader before us: a file of an earlier
            one is outdated.
        outbox: publishes `orchestrator/info`.
        announcer: tells what was changed.
        apply: gets the options to go by from now on.
    """

    def __init__(
        self,
        options: OrchestratorOptions,
        *,
        path: Path,
        term: int,
        before: int,
        outbox: Outbox,
        announcer: Announcer,
        apply: Callable[[OrchestratorOptions], None],
    ) -> None:
        self.options = options
        """To go by now."""
        self._started = options
        self._path = path
        self._term = term
        self._before = before
        self._outbox = outbox
        self._announcer = announcer
        self._apply = apply
        self._changed: dict[str, Any] = {}
        self._revision = 0
        self._found: OrchestratorInfo | None = None

    def found(self, info: OrchestratorInfo) -> None:
        """What an earlier orchestrator had retained."""
        self._found = info

    def restore(self) -> None:
        """Go on with what was set before, and publish it; called once, when all that was retained is known.

        A value that does not fit any more, after an update, is told of and left out.
        """
        kept = self._read()
        if self._found is not None and self._found.revision >= kept.revision:
            kept = replace(kept, revision=self._found.revision, changed=dict(self._found.changed))
        self._revision = kept.revision
        for name, value in kept.changed.items():
            try:
                checked = check(name, value)
                after = with_settings(
                    self._started, {**asdict(settings_of(self.options)), name: checked}
                )
            except Amp4ecError as error:
                log.error("a setting of earlier is left out", setting=name, error=error)
                self._announcer.happened(Tell("settings_changed", f"{name} is left out: {error}"))
                continue
            self._changed[name] = checked
            self.options = after
        if self._changed:
            self._apply(self.options)
            log.info("settings are as set earlier", **self._changed)
        self._publish()

    def set(self, request: SetRequest) -> OrchestratorInfo:
        """Change all that a request names.

        Raises:
            JobError: there is no such setting, or its value is out of bounds.
            ConfigurationError: the value makes no sense.
        """
        before = settings_of(self.options)
        started = asdict(settings_of(self._started))
        given = {
            name: started[name] if value is None and name in started else check(name, value)
            for name, value in request.settings.items()
        }
        options = with_settings(self._started, asdict(before) | given)
        changed = {
            name: value
            for name, value in {**self._changed, **given}.items()
            if request.settings.get(name, value) is not None
        }
        if changed != self._changed:
            self._changed, self.options = changed, options
            self._revision += 1
            self._write()
            self._apply(options)
            self._tell(before)
            self._publish()
        return self.info()

    def info(self) -> OrchestratorInfo:
        """What is retained on `orchestrator/info`."""
        info = OrchestratorInfo(
            version=own_version(),
            settings=settings_of(self.options),
            changed=self._changed,
            revision=self._revision,
            term=self._term,
            verbs=sorted(VERBS),
            schema=schema(settings_of(self._started)),
        )
        return worded(info)

    def _publish(self) -> None:
        self._outbox.publish("orchestrator_info", self.info(), retain=True)

    def _tell(self, before: Settings) -> None:
        old, new = asdict(before), asdict(settings_of(self.options))
        parts = [
            f"{name} is {shown(new[name])} now, it was {shown(old[name])}"
            for name in NAMES
            if new[name] != old[name]
        ]
        if parts:
            self._announcer.happened(Tell("settings_changed", "; ".join(parts)))

    def _read(self) -> _Document:
        nothing = _Document(root=self._options_root())
        try:
            document = decode_json(self._path.read_bytes(), _Document)
        except FileNotFoundError:
            return nothing
        except (OSError, ProtocolError) as error:
            log.error(
                "what was set cannot be read, the broker's word is taken alone",
                path=self._path,
                error=error,
            )
            return nothing
        if document.root != self._options_root() or document.term < self._before:
            return nothing
        return document

    def _options_root(self) -> str:
        return self._started.root

    def _write(self) -> None:
        document = _Document(
            root=self._options_root(),
            term=self._term,
            revision=self._revision,
            changed=self._changed,
        )
        try:
            write_whole(self._path, encode_json(document), durable=False)
        except OSError as error:
            log.error("what was set cannot be written", path=self._path, error=error)


def settings_of(options: OrchestratorOptions) -> Settings:
    """The settings that options amount to."""
    cluster, dispatch, scheduling = options.cluster, options.dispatch, options.dispatch.scheduling
    return Settings(
        gain_threshold_ratio=cluster.gain_threshold,
        cool_down_s=cluster.cool_down_s,
        load_timeout_s=cluster.load_timeout_s,
        blocked_s=cluster.blocked_s,
        forget_after_s=cluster.forget_after_s,
        prefetch=options.prefetch,
        scheduler=scheduling.scheduler.value,
        nsa_form=scheduling.form.value,
        nsa_weights=scheduling.weights,
        nsa_max_load_ratio=scheduling.max_load_ratio,
        nsa_max_latency_s=scheduling.max_latency_s,
        log_decisions=scheduling.log_decisions,
        max_item_bytes=dispatch.max_item_bytes,
        max_queued_items=dispatch.max_queued_items,
        max_queued_bytes=dispatch.max_queued_bytes,
        unserved_limit_s=dispatch.unserved_limit_s,
    )


def with_settings(options: OrchestratorOptions, values: Mapping[str, Any]) -> OrchestratorOptions:
    """Options with all settings replaced.

    Raises:
        ConfigurationError: values that make no sense together.
    """
    settings = Settings(**values)
    return replace(
        options,
        prefetch=settings.prefetch,
        cluster=replace(
            options.cluster,
            gain_threshold=settings.gain_threshold_ratio,
            cool_down_s=settings.cool_down_s,
            load_timeout_s=settings.load_timeout_s,
            blocked_s=settings.blocked_s,
            forget_after_s=settings.forget_after_s,
        ),
        dispatch=replace(
            options.dispatch,
            max_item_bytes=settings.max_item_bytes,
            max_queued_items=settings.max_queued_items,
            max_queued_bytes=settings.max_queued_bytes,
            unserved_limit_s=settings.unserved_limit_s,
            scheduling=replace(
                options.dispatch.scheduling,
                scheduler=Scheduler(settings.scheduler),
                form=Form(settings.nsa_form),
                weights=settings.nsa_weights,
                max_load_ratio=settings.nsa_max_load_ratio,
                max_latency_s=settings.nsa_max_latency_s,
                log_decisions=settings.log_decisions,
            ),
        ),
    )


def schema(started: Settings) -> dict[str, Any]:
    """The JSON Schema of `Settings`, each `default` the value that the orchestrator was started with."""
    document = json_schema(Settings)
    values = asdict(started)
    properties = {
        name: {**each, "default": values[name]} for name, each in document["properties"].items()
    }
    return {**document, "properties": properties, "required": [], "additionalProperties": False}


def check(name: str, value: object) -> object:
    """A setting's value, as its type.

    Raises:
        JobError: it is none, or there is no such setting.
    """
    if name not in NAMES:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "there is no such setting",
            expected="one of " + ", ".join(NAMES),
            got=name[:100],
        )
    try:
        return convert(value, _types()[name])
    except ProtocolError as error:
        raise JobError(
            ErrorCode.BAD_INPUT,
            f"setting {name}",
            expected=expected(json_schema(Settings)["properties"][name]),
            got=shown(value)[:200],
        ) from error


def expected(schema: Mapping[str, Any]) -> str:
    """What a property of the schema takes, in words: `a number, 0 to 86400 s`."""
    if "enum" in schema:
        return "one of " + ", ".join(str(each) for each in schema["enum"])
    match schema["type"]:
        case "boolean":
            return "true or false"
        case "array":
            return f"{schema['minItems']} numbers"
        case kind:
            low = schema.get("minimum", schema.get("exclusiveMinimum"))
            above = "above " if "exclusiveMinimum" in schema else ""
            what = "a whole number" if kind == "integer" else "a number"
            unit = schema.get("unit", "")
            unit = "" if unit == "ratio" else f" {unit}"
            return f"{what}, {above}{low} to {schema['maximum']}{unit}".replace(".0 ", " ")


def shown(value: object) -> str:
    """A value as it stands in JSON."""
    return encode_json(value).decode()


@lru_cache(maxsize=1)
def _types() -> dict[str, Any]:
    return get_type_hints(Settings, include_extras=True)
