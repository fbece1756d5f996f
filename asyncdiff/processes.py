"""The processes of a run: what they send each other, and how they end together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.command_line import RunError, is_out_of_memory

from .plan import Plan
from .run import Outputs

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and accelerate set
COMMAND = "torchrun --nproc_per_node 2 -m asyncdiff.sample"


class OneProcess:
    """Does the work of all processes by itself, in turn: the same results, not sooner."""

    rank = 0

    def __init__(self) -> None:
        self.bytes_sent = 0  # by all of them, if they were several

    def roles(self, plan: Plan) -> Sequence[int]:
        """The processes of the plan whose work is done here."""
        return range(plan.num_processes)

    def exchange(self, plan: Plan, made: dict[int, Outputs], like: Outputs) -> dict[int, Outputs]:
        """What is there already; counts what would have been sent."""
        for source, outputs in made.items():
            for target in made.keys() - {source}:
                self.bytes_sent += sum(outputs[layer].nbytes for layer in plan.sent(source, target))
        return made

    def wait(self) -> None:
        """Until all processes are here."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of one shape as each process has it."""
        return [tensor]


class ProcessGroup:
    """This process among several.

    Attributes:
        bytes_sent: by this process, in `exchange`.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self._timeout = rank, size, timeout
        self.bytes_sent = 0

    def roles(self, plan: Plan) -> Sequence[int]:
        """As `OneProcess`. Raises ValueError if the plan is for another number of processes."""
        if plan.num_processes != self.size:
            raise ValueError(
                f"{len(plan.parts)} parts and a stride of {plan.stride} need {plan.num_processes} processes; "
                f"there are {self.size}"
            )
        return (self.rank,)

    def exchange(self, plan: Plan, made: dict[int, Outputs], like: Outputs) -> dict[int, Outputs]:
        """What each process made, as far as it is read here.

        Args:
            made: by this process, of which it sends what others read.
            like: earlier outputs of the same shapes and dtypes as those that come.
        """
        own, arriving, messages = made[self.rank], {}, []
        with self._peers():
            for peer in range(self.size):  # one message to and one from each
                if peer == self.rank:
                    continue
                if sent := plan.sent(self.rank, peer):
                    flat = torch.cat([own[layer].flatten() for layer in sent])
                    self.bytes_sent += flat.nbytes
                    messages.append(dist.P2POp(dist.isend, flat, peer))
                if received := plan.sent(peer, self.rank):
                    flat = torch.cat([torch.empty_like(like[layer]).flatten() for layer in received])
                    arriving[peer] = received, flat
                    messages.append(dist.P2POp(dist.irecv, flat, peer))
            for pending in dist.batch_isend_irecv(messages):
                pending.wait()
        result = {self.rank: own}
        for peer, (layers, flat) in arriving.items():
            pieces = flat.split([like[layer].numel() for layer in layers])
            result[peer] = {layer: piece.view(like[layer].shape) for layer, piece in zip(layers, pieces, strict=True)}
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        with self._peers():
            dist.barrier()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of one shape as each process has it."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._peers():
            dist.all_gather(found, tensor.contiguous())
        return found

    @contextmanager
    def _peers(self) -> Iterator[None]:
        """Turns what torch says of a peer that is gone into one line."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"process {self.rank} lost the others: one ended or did not answer within {self._timeout:g} s; "
                "see its message, then rerun the command"
            ) from None


def launched_size() -> int:
    """How many processes torchrun or accelerate started.

    Raises:
        ValueError: none.
    """
    if not all(name in os.environ for name in LAUNCHED):
        raise ValueError(f"AsyncDiff runs in several processes: {COMMAND} …, or --emulate 2 to try it in one")
    return int(os.environ["WORLD_SIZE"])


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[ProcessGroup]:
    """This process among those that were started with it, connected; gloo on CPUs, nccl on GPUs.

    Args:
        device: of this process.
        timeout: seconds after which a process that does not answer is given up.

    Raises:
        RunError: the others did not come.
    """
    size, rank = launched_size(), int(os.environ["RANK"])
    group = ProcessGroup(rank, size, timeout)
    settings: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    with group._peers():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **settings)
    try:
        yield group
    finally:
        dist.destroy_process_group()
