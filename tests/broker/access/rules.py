"""What each role may do with each topic, by hand: the table that `broker.access` is checked against.

Row of the topic table -> roles that may. A word after a colon says with which name in the topic: `own`, the
user's; `orchestrator`, that peer's; without one, any.
"""

from __future__ import annotations

from shared.topics import TABLE

ROLES = ("orchestrator", "operator", "agent", "client", "monitor", "home-assistant", "bridge")
"""All but nobody, who may nothing. The orchestrator may everything below the root."""

READ = {
    "node_state": "agent:own client monitor home-assistant operator",
    "ping": "agent:own bridge",
    "telemetry": "client monitor home-assistant operator",
    "assignment": "agent:own bridge",
    "cordon": "client monitor home-assistant operator bridge",
    "report": "agent:own monitor home-assistant operator",
    "model_state": "client monitor home-assistant operator bridge",
    "infer": "",
    "infer_311": "",
    "activation": "agent bridge",
    "stage_result": "agent bridge",
    "result": "client:own operator:own bridge",
    "artifact_want": "operator",
    "artifact_piece": "agent:own bridge",
    "artifact_probe": "agent:own operator:own",
    "request": "",
    "response": "operator",
    "orchestrator_state": "agent client monitor home-assistant operator bridge",
    "orchestrator_info": "monitor home-assistant operator bridge",
    "health": "monitor home-assistant operator bridge",
    "response_own": "operator",
    "orchestrator_beat": "",
    "standby": "",
    "event": "monitor home-assistant operator bridge",
    "metrics": "monitor home-assistant operator bridge",
}
WRITE = {
    "node_state": "agent:own bridge",
    "ping": "agent:own",
    "telemetry": "agent:own bridge",
    "assignment": "",
    "cordon": "",
    "report": "agent:own bridge",
    "model_state": "",
    "infer": "bridge",
    "infer_311": "client:own operator:own bridge",
    "activation": "agent bridge",
    "stage_result": "agent bridge",
    "result": "",
    "artifact_want": "agent:orchestrator bridge:orchestrator",
    "artifact_piece": "operator:orchestrator",
    "artifact_probe": "agent:own operator:own",
    "request": "operator",
    "response": "",
    "response_own": "",
    "orchestrator_state": "",
    "orchestrator_info": "",
    "health": "",
    "orchestrator_beat": "",
    "standby": "",
    "event": "",
    "metrics": "",
}

DISCOVERY = {
    "homeassistant/device/{own}/config": (
        "orchestrator home-assistant",
        "orchestrator home-assistant",
    ),
    "homeassistant/status": ("orchestrator home-assistant", "home-assistant"),
}
"""Topics of Home Assistant's: who may read, who may write."""

OUTSIDE = (
    *DISCOVERY,
    "homeassistant/device/{own}/x/config",
    "homeassistant/sensor/{own}/config",
    "elsewhere/device/{own}/config",
    # Below the root, and in no row.
    "{root}",
    "{root}/nonsense",
    "{root}/node/{own}",
    "{root}/node/{own}/other",
    "{root}/node/{own}/state/x",
    "{root}/model/m/infer/{own}",
    "{root}/model/m/infer/{own}/j/x",
    "{root}/pipeline/p/1/0/x",
    "{root}/result/{own}/j/x",
    # Elsewhere.
    "node/{own}/state",
    "/{root}/node/{own}/state",
    "{root}x/node/{own}/state",
    "amp4ec/v2/model/m/infer/{own}/j",
    "AMP4EC/v1/node/{own}/state",
    "other",
    "$SYS/broker/version",
    "$CONTROL/dynamic-security/v1",
)
"""Topics of no row: the orchestrator has those below the root, nobody else has any."""


def may(table: dict[str, str], role: str, row: str, level: str) -> bool:
    """Whether `table`, READ or WRITE, lets `role` at a row; `level` is whose name stands in the topic."""
    if role == "orchestrator":
        return True
    for entry in table[row].split():
        name, _, only = entry.partition(":")
        if name == role and (not only or only == level):
            return True
    return False


def named(row: str) -> bool:
    """Whether a name stands in the row's topic."""
    pattern = next(spec.pattern for spec in TABLE if spec.name == row)
    return any(level in pattern for level in ("{node}", "{client}", "{peer}"))
