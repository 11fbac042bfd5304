"""A Python process with the libraries that an agent cannot do without, and nothing of ours."""

from __future__ import annotations

import aiomqtt
import msgspec
import numpy as np
import psutil

from deploy.peer import be_ready, wait_for_end

LIBRARIES = (aiomqtt, msgspec, np, psutil)


if __name__ == "__main__":
    be_ready()
    wait_for_end()
