"""How fast blobs may come to a node that runs stages at the same time.

Activations and blobs share the node's link and its CPU. While no stage has had anything to do for a moment
blobs may have all of both; else half of what activations leave of the link, and a tenth of the CPU.
"""

from __future__ import annotations

LINK_SHARE = 0.5
"""Of what activations leave. They come in bursts: what is idle now is needed in a moment."""
LEAST_LINK_SHARE = 0.1
"""Of the whole link: a link that activations fill would otherwise keep every new plan out."""
CPU_SHARE = 0.1
CPU_S_PER_BYTE = 10e-9
"""To receive, check and store a blob in pieces; measured with one x86 server core: 9 to 10."""


def allowed_bytes_per_s(
    *, items: int, received_bytes_per_s: float, link_bytes_per_s: float | None, cpus: float
) -> float | None:
    """What blobs may have; None: all.

    Args:
        items: that stages have finished lately, or have in their queue.
        received_bytes_per_s: of activations, lately.
        link_bytes_per_s: to this node; None where nobody knows.
        cpus: that the node may use.
    """
    if not items:
        return None
    by_cpu = cpus * CPU_SHARE / CPU_S_PER_BYTE
    if link_bytes_per_s is None:
        return by_cpu
    left = max(0.0, link_bytes_per_s - received_bytes_per_s)
    return min(by_cpu, max(LINK_SHARE * left, LEAST_LINK_SHARE * link_bytes_per_s))
