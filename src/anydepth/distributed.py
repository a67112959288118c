"""Distributed jobs: rank, barrier and process group, where `torchrun` or `accelerate launch` started the processes."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from anydepth.errors import LaunchError, one_line


def rank_and_count() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without a process group.

    Example:
        >>> rank_and_count()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Barrier: return when every process has called it."""
    if rank_and_count()[1] > 1:
        dist.barrier()


def largest(number: int, device: torch.device | str) -> int:
    """The maximum of a number over all processes, exchanged as a tensor on `device`."""
    if rank_and_count()[1] == 1:
        return number
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def join() -> str | None:
    """Start the process group that the launcher's environment describes, if any; returns this process's GPU, if any.

    Raises:
        LaunchError: the environment is invalid, or the other processes cannot be reached.
    """
    check_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
            dist.init_process_group("nccl", device_id=torch.device("cuda", local))
            return f"cuda:{local}"
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise LaunchError(
            f"the {os.environ['WORLD_SIZE']} processes of WORLD_SIZE cannot be reached "
            f"({one_line(error)}): start all of them with torchrun, or unset WORLD_SIZE"
        ) from error
    return None


def check_launcher() -> None:
    """Raise `LaunchError` if the launcher's environment variables are not numbers."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not (text.isascii() and text.isdecimal()):
            raise LaunchError(
                f"{name} is {text!r}, expected a number, as torchrun sets it: unset it to run one process"
            )


def leave() -> None:
    """End the process group, if one was started."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
