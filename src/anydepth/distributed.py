"""Which of several processes this is, if `torchrun` or `accelerate launch` started them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from anydepth.errors import LaunchError, one_line


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


def largest(number: int, device: torch.device | str) -> int:
    """The largest of the numbers that all processes give at the same time.

    Args:
        number: of this process.
        device: where processes exchange tensors.
    """
    if rank_and_count()[1] == 1:
        return number
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def join() -> str | None:
    """Start the process group that the launcher's environment describes, if there is one.

    Returns:
        The device of this process where each has its own, else None.

    Raises:
        LaunchError: the environment makes no sense, or the other processes cannot be reached.
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
            f"the processes that WORLD_SIZE={os.environ['WORLD_SIZE']} speaks of cannot be reached "
            f"({one_line(error)}): start all of them with torchrun, or unset WORLD_SIZE"
        ) from error
    return None


def check_launcher() -> None:
    """See that the launcher's environment, if there is one, holds numbers.

    Raises:
        LaunchError: it does not.
    """
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
