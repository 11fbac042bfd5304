"""The figures that the paper prints (arXiv 2504.00407), in our names and units."""

from __future__ import annotations

from typing import Final

MONOLITHIC, AMP4EC, CACHED = "Monolithic", "AMP4EC", "AMP4EC+Cache"
TABLE_ONE: Final[dict[str, dict[str, str]]] = {
    "latency_ms": {MONOLITHIC: "1082.53", AMP4EC: "605.32", CACHED: "234.56"},
    "throughput_per_s": {MONOLITHIC: "0.96 req/s", AMP4EC: "5.01 req/s", CACHED: "5.07 req/s"},
    "communication_ms": {MONOLITHIC: "0", AMP4EC: "-37.41", CACHED: "-37.41"},
    "cpu_percent": {MONOLITHIC: "0.00056", AMP4EC: "0.0034", CACHED: "0.0034"},
    "memory_mb": {MONOLITHIC: "0.625", AMP4EC: "1.625", CACHED: "1.625"},
    "network_kb_per_image": {MONOLITHIC: "0", AMP4EC: "100 MB in all", CACHED: "100 MB in all"},
    "stability": {MONOLITHIC: "1.0", AMP4EC: "0.95", CACHED: "0.95"},
    "scheduling_ms": {MONOLITHIC: "0", AMP4EC: "10.00", CACHED: "10.00"},
}
HEADLINE: Final = "-78.35 % latency and +414.73 % throughput"
"""Of AMP4EC with its cache against the monolithic process."""
OURS: Final = {
    MONOLITHIC: "monolithic, eager, batch 32",
    AMP4EC: "AMP4EC",
    CACHED: "AMP4EC + cache",
}
"""Which of our cases stands beside which column."""
TABLE_TWO_MS: Final = {"High": 234.56, "Medium": 389.27, "Low": 583.91}
"""Average inference time by profile; the text says 22 to 23 ms of High and Medium, and 40 of Low."""
