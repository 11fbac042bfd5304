"""The end of an agent's process while a runtime is still busy in a thread."""

from __future__ import annotations

import logging
import os
import sys
import threading


def leave(code: int) -> None:
    """End the process here where a daemon thread still runs; return where none does.

    A load or an inference that nobody waits for any more may be deep in a runtime's C++. At its end the
    interpreter stops such a thread as soon as it asks for the GIL, by unwinding its stack, and a C++ frame
    that must not be unwound then aborts the process: a clean stop would look like a crash.

    Args:
        code: the process's exit code.
    """
    main = threading.main_thread()
    if any(thread.daemon and thread is not main for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
