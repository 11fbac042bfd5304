"""A Ray node of one's own on loopback: no dashboard, no reports to its makers, no more than one machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from deploy.experiments.peers.drivers.lines import Setup

_STORE_BYTES = 256 * 1024 * 1024
_REMOVE_TRIES, _REMOVE_S = 50, 0.1


@contextmanager
def ray_node(setup: Setup) -> Iterator[None]:
    """Start one, and end it with every process it started."""
    # Ray's sockets lie below it, and a socket's path may have 107 characters.
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        num_cpus=int(setup.options["stages"]) + 2,  # of bookkeeping: cgroups limit the stages
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=scratch,
    )
    try:
        yield
    finally:
        ray.shutdown()
        # Daemons that are still ending may write to it once more.
        for _ in range(_REMOVE_TRIES):
            shutil.rmtree(scratch, ignore_errors=True)
            if not os.path.lexists(scratch):
                break
            time.sleep(_REMOVE_S)
