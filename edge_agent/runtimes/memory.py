"""Memory that loading left behind, given back to the kernel."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return freed memory, where the C library can (glibc); it keeps it for later otherwise.

    A stage is loaded once in a while and in many steps: a third of what the process then held for
    MobileNetV2 was free, and a small device has better uses for it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
