"""Models: import, cut, slice. Only the importer's side imports torch, and nothing here does at once."""

import os

# ONNX Runtime reports to its maker unless it is told otherwise before its import; see `edge_agent.runtimes`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
