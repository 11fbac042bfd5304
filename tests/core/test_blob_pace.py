"""How much of a node blobs may have while its stages run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.blob_pace import CPU_S_PER_BYTE, CPU_SHARE, allowed_bytes_per_s

RATES = st.floats(1e3, 1e9)
CPUS = st.floats(0.05, 8.0)


@given(RATES, st.none() | RATES, CPUS)
def test_a_node_with_nothing_to_do_has_no_limit(
    received: float, link: float | None, cpus: float
) -> None:
    allowed = allowed_bytes_per_s(
        items=0, received_bytes_per_s=received, link_bytes_per_s=link, cpus=cpus
    )
    assert allowed is None


@given(st.integers(1, 1000), RATES, RATES, CPUS)
def test_activations_keep_what_they_use(
    items: int, received: float, link: float, cpus: float
) -> None:
    """But for a tenth of the link, without which no new plan would ever get through."""
    allowed = allowed_bytes_per_s(
        items=items, received_bytes_per_s=received, link_bytes_per_s=link, cpus=cpus
    )
    assert allowed is not None
    assert 0.0 < allowed <= max(link - received, 0.1 * link)
    assert allowed * CPU_S_PER_BYTE <= cpus * CPU_SHARE * (1 + 1e-9)


def test_by_hand() -> None:
    """10 Mbit/s of which activations use a half; a fast link at 0.2 CPU; a link that nobody measured."""
    for received, link, cpus, expected in (
        (0.625e6, 1.25e6, 1.0, 0.3125e6),
        (1.25e6, 1.25e6, 1.0, 0.125e6),
        (1e6, 131e6, 0.2, 2.0e6),
        (1e6, None, 0.2, 2.0e6),
    ):
        allowed = allowed_bytes_per_s(
            items=1, received_bytes_per_s=received, link_bytes_per_s=link, cpus=cpus
        )
        assert allowed is not None
        assert abs(allowed - expected) < 1.0
