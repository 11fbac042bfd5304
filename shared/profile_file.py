"""A model's profile as a JSON file (ALGORITHMS.md, section 3): saved, loaded and shared.

::

    {"model": "mobilenet_v2",
     "blocks": [{"index": 0, "name": "features.0", "macs": 10838016, "weight_bytes": 3456,
                 "peak_bytes": 2408448, "seconds": 0.0004}, ...],
     "cuts": [{"index": 1, "bytes": 1605632, "tensors": 1}, ...],
     "input_bytes": 602112, "output_bytes": 4000,
     "input_seconds": 0.002, "runtime_bytes": 150000000,
     "leaves": [{"name": "features.0.0", "type": "Conv2d", "cost": 864, "block": 0}, ...]}

Seconds are those of the profiled machine at 1.0 CPU. `peak_bytes`, `input_seconds`, `runtime_bytes` and
`leaves` may be left out (0; without leaves the paper's rules cannot run). Fields that are not known are
ignored, so that a newer file can be read.
"""

from __future__ import annotations

from shared.codec import decode_json
from shared.errors import ConfigurationError, ProtocolError
from shared.profile import ModelProfile


def load_profile(data: bytes) -> ModelProfile:
    """Read a profile file.

    Raises:
        ConfigurationError: not JSON, a field that is missing, of the wrong type or out of range; says which.
    """
    try:
        return decode_json(data, ModelProfile)
    except ProtocolError as error:
        raise ConfigurationError(
            f"profile file: {error.message}",
            expected="a model's profile as JSON (write one with `amp4ec profile MODEL --json`)",
            got=error.got,
        ) from error
