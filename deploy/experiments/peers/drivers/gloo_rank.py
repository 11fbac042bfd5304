"""A rank with a stage of the gloo peer: `python -m ... SETUP PORT INDEX`.

The process joins its cgroup before it imports torch, so that a start costs what it would on a slow device.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from deploy.experiments.peers.drivers.lines import PARENT, Setup, follow

IMAGE = (3, 224, 224)
_START_S = 180.0


def join(port: int, rank: int, stages: int) -> Any:
    """Become a rank; the group of the stages, without the one that asks."""
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=stages + 1,
        timeout=timedelta(seconds=_START_S),
    )
    return dist.new_group(list(range(stages)))


def run_stage(setup: Setup, port: int, index: int) -> None:
    """A rank with a stage, until the others are gone."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    from deploy.experiments.peers.drivers.stage import load_stage

    module = load_stage(setup, index)
    stages = int(setup.options["stages"])
    microbatches = int(setup.options["microbatches"])
    group = join(port, index, stages)
    stage = PipelineStage(module, index, stages, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(stage, microbatches)
    asker = stages
    with torch.inference_mode():
        if index == 0:
            buffers = [torch.empty((microbatches, *IMAGE)) for _ in range(2)]
            coming = dist.irecv(buffers[0], src=asker)
            turn = 0
            while True:
                coming.wait()
                images, turn = buffers[turn], 1 - turn
                coming = dist.irecv(buffers[turn], src=asker)
                schedule.eval(images)
        elif index == stages - 1:
            while True:
                dist.send(schedule.eval(), dst=asker)
        else:
            while True:
                schedule.eval()


if __name__ == "__main__":
    follow(int(os.environ[PARENT]))
    given = Setup.parse(sys.argv[1])
    given.join(int(sys.argv[3]))
    run_stage(given, int(sys.argv[2]), int(sys.argv[3]))
