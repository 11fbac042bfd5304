"""What a node says of itself: birth, death and last will, with the incarnation that tells lives apart.

The control connection is made here, because a last will belongs to the connection that it is about.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from edge_agent.options import AgentOptions
from shared.bus import ControlBus, Message, Publication
from shared.codec import encode_json
from shared.errors import BrokerError, ConfigurationError
from shared.logs import get_log
from shared.messages.node import Calibration, Hardware, NodeState
from shared.sentences import worded
from shared.topics import Topics

log = get_log(__name__)

State = Literal["online", "offline", "lost"]


class Presence:
    """One life of a node on the bus.

    Args:
        options: what the agent was told.
        incarnation: the number of this life.
        hardware: what the device is.
        runtimes: versions by name.
        calibrations: measured speeds by runtime, those known before; more come by `calibrated`.
        term: the greatest term of a leader that the node has heard of by now.
        control: makes the control connection with a last will; entered by its user.
    """

    def __init__(
        self,
        options: AgentOptions,
        incarnation: int,
        *,
        hardware: Hardware,
        runtimes: Mapping[str, str],
        calibrations: Mapping[str, Calibration],
        term: Callable[[], int],
        control: Callable[[Publication], ControlBus],
    ) -> None:
        self.incarnation = incarnation
        self._options = options
        self._hardware = hardware
        self._runtimes = dict(runtimes)
        self._calibrations = dict(calibrations)
        self._term = term
        self._topic = Topics(options.root).topic("node_state", node=options.node)
        self.control = control(
            Publication(
                topic=self._topic,
                payload=encode_json(worded(self._state("lost", "the broker lost the connection"))),
                retain=True,
            )
        )

    async def say(self, state: State, reason: str = "", timeout_s: float | None = None) -> None:
        """Publish a birth or a death.

        Raises:
            BrokerError: not sent within `timeout_s`, or refused.
        """
        await self.control.publish(
            self._topic,
            encode_json(worded(self._state(state, reason))),
            retain=True,
            timeout_s=timeout_s,
        )

    async def say_again(self) -> None:
        """Publish the birth once more, with what has changed; the next connection begins with one anyway."""
        try:
            await self.say("online")
        except BrokerError as error:
            log.info("birth not sent", error=error)

    async def calibrated(self, runtime: str, measured: Calibration) -> None:
        """A runtime's speed is known now: tell it with another birth."""
        self._calibrations[runtime] = measured
        await self.say_again()

    def is_calibrated(self, runtime: str) -> bool:
        """Whether the runtime's speed is known."""
        return runtime in self._calibrations

    def buried_alive(self, message: Message, state: NodeState | None) -> bool:
        """Whether a will of ours or of an earlier life came late, or somebody cleared the topic (None).

        Then what is retained is wrong, and the birth is to be said again. What was retained before this
        connection our birth has replaced by now.
        """
        if message.retain:
            return False
        if state is None or state.incarnation < self.incarnation:
            return True
        return state.state == "lost" and self._order(state) == self._own_order

    def outlived(self, message: Message, state: NodeState) -> int | ConfigurationError | None:
        """What a later life under our name means for this one; None when there is none.

        Of two that began in the same millisecond the one of the larger host and process counts as later.

        Returns:
            The incarnation to exceed, when an earlier life of this node left it behind (the clock
            was ahead then); an error when another agent has taken the name.
        """
        if self._order(state) <= self._own_order:
            return None
        node = self._options.node
        anew = state.incarnation > self.incarnation
        if message.retain and self.control.reconnections == 0 and anew:
            log.warning(
                "an earlier life had a greater incarnation: the clock went back",
                node=node,
                earlier=state.incarnation,
                incarnation=self.incarnation,
            )
            return state.incarnation
        return ConfigurationError(
            f"another agent has taken the name {node!r} (process {state.pid} on {state.host})",
            expected="each agent with a name of its own (--name)",
            got=f"incarnation {state.incarnation} after ours, {self.incarnation}",
        )

    @property
    def _own_order(self) -> tuple[int, str, int]:
        return self.incarnation, platform.node(), os.getpid()

    @staticmethod
    def _order(state: NodeState) -> tuple[int, str, int]:
        return state.incarnation, state.host, state.pid

    def _state(self, state: State, reason: str = "") -> NodeState:
        options = self._options
        return NodeState(
            state=state,
            node=options.node,
            incarnation=self.incarnation,
            pid=os.getpid(),
            host=platform.node(),
            version=options.version or _version(),
            hardware=self._hardware,
            runtimes=self._runtimes,
            calibration=self._calibrations,
            zone=options.zone,
            price_per_hour=options.price_per_hour,
            power_w=options.power_w,
            telemetry_interval_s=options.telemetry_interval_s,
            term=self._term(),
            reason=reason,
        )


def _version() -> str:
    try:
        return version("amp4ec")
    except PackageNotFoundError:  # run from a checkout
        return ""
