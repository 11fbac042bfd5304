"""What the flags of chaos and soak may be."""

from __future__ import annotations

import argparse
import contextlib


def positive(text: str) -> float:
    """A number above nothing, for argparse.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"expected a number above 0; got {text!r}")
