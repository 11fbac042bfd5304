"""A node's cable on this machine: cut without a word, or made slow.

One end is a port of a bridge here, the other the only interface of a network namespace: of a process
(`deploy.network`) or of a container (`deploy.containers.links`). No packet filter: a bridge's port that is
switched off drops what comes from either side. Rates are token buckets, one in each direction.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ConfigurationError

_MIN_RATE_BYTES_PER_S: Final = 1_000
_MIN_BURST_BYTES: Final = 16 * 1024
"""What a rate lets through at once: more than a packet, and small against what a stage sends."""
_QUEUE_S: Final = 0.4
_MIN_QUEUE_BYTES: Final = 128 * 1024
"""What may wait in front of a rate before packets are dropped: this, or what passes in `_QUEUE_S`."""
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
"""Root in a container has user id 0 and not these; numbers from linux/capability.h."""


def network_missing() -> str:
    """Why this process cannot work on links; empty when it can, as far as looking tells."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    lacking = [name for name, bit in _CAPABILITIES.items() if not _capable(bit)]
    if lacking:
        return f"network namespaces need root; this process has no {' and no '.join(lacking)}"
    missing = [tool for tool in ("ip", "bridge", "tc", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}: install iproute2 and util-linux"
    return ""


def _capable(bit: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> bit & 1)
    return False


@dataclass(frozen=True, slots=True)
class Link:
    """`port` is the end on our side, a bridge's; `namespace` the file of where the other is, as `eth0`.

    The methods block for some milliseconds.

    Raises:
        ConfigurationError: from each of them, when the kernel refuses; the message says what.
    """

    port: str
    namespace: Path

    def entry(self) -> list[str]:
        """What a command line begins with to run on the node's side.

        Unlike `ip netns exec` this leaves file systems alone: the program still sees its cgroup.
        """
        return ["nsenter", f"--net={self.namespace}", "--"]

    def cut(self) -> None:
        """Let every packet vanish; connections stay as they are, and hear nothing."""
        self._switch("disabled")

    def heal(self) -> None:
        """Undo `cut`."""
        self._switch("forwarding")

    def rate(self, bytes_per_s: float) -> None:
        """Let through `bytes_per_s` at most, in each direction.

        Raises:
            ConfigurationError: the rate is below 1,000 bytes/s.
        """
        if not bytes_per_s >= _MIN_RATE_BYTES_PER_S:
            raise ConfigurationError(
                "a rate is too low to carry packets",
                expected=f"at least {_MIN_RATE_BYTES_PER_S} bytes/s",
                got=f"{bytes_per_s:g}",
            )
        # tc's "bps" are bytes per second.
        burst = max(_MIN_BURST_BYTES, round(bytes_per_s / 100))
        queue = max(_MIN_QUEUE_BYTES, round(bytes_per_s * _QUEUE_S))
        self._shape(f"tbf rate {round(bytes_per_s)}bps burst {burst} limit {queue}")

    def unrate(self) -> None:
        """Undo `rate`; nothing where there is none."""
        self._shape("pfifo")  # puts the default back, whether or not there was another

    def _switch(self, state: str) -> None:
        # By `bridge`: what `ip link set ... type bridge_slave state` says is passed over by the kernel.
        run_tool(["bridge", "link", "set", "dev", self.port, "state", state])

    def _shape(self, discipline: str) -> None:
        run_tool(["tc", "qdisc", "replace", "dev", self.port, "root", *discipline.split()])
        run_tool(
            [*self.entry(), "tc", "qdisc", "replace", "dev", "eth0", "root", *discipline.split()]
        )


def run_tool(command: list[str], text: str | None = None) -> str:
    """Run a network tool with `text` as its input; what it printed.

    Raises:
        ConfigurationError: it failed; the message has what it said.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise ConfigurationError(
            f"the kernel refuses a network of one's own: {text or ' '.join(command)}", got=said
        )
    return done.stdout
