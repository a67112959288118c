"""Which of several processes this is, if `torchrun` or `accelerate launch` started them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def rank_and_count() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) where no process group was started.

    Example:
        >>> rank_and_count()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Return when every process has come this far."""
    if rank_and_count()[1] > 1:
        dist.barrier()


def join() -> str | None:
    """Start the process group that the launcher's environment describes, if there is one.

    Returns:
        The device of this process where each has its own, else None.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local))
        return f"cuda:{local}"
    dist.init_process_group("gloo")
    return None


def leave() -> None:
    """End the process group, if one was started."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
