"""Training in step: every worker has the same weights, takes a part of each batch and averages gradients."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from services.common.errors import InvalidInput
from services.trainer.training.group import Alone, Group


class DataParallel:
    """The workers that torchrun has started; made by `joined`.

    Two workers do what one does with whole batches, but for what depends on the rest of a batch (statistics of batch
    norms are of a part) and for random numbers (each worker has its own).
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return *network* with gradients that are averaged, while they are computed, over all workers.

        Before each batch its buffers, such as statistics of batch norms, become those of the first worker.
        """
        # What a network has and does not use would otherwise be waited for. Looking for it costs little beside a step.
        return DistributedDataParallel(network, find_unused_parameters=True, gradient_as_bucket_view=True)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of *values* over all workers."""
        total = values.clone()
        dist.all_reduce(total)
        return total / self.count

    def agree(self, value: float) -> float:
        """Return the first worker's *value*; also on GPUs it goes by way of the processor and waits for no kernel."""
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(agreed, src=0)
        return agreed.item()

    def share(self, model: nn.Module) -> None:
        """Give every worker the first one's weights and buffers."""
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Be one of the workers that torchrun has started, or alone where it has not started this process.

    The workers of a machine share its threads, and each takes a GPU of its own as torch's present device.

    Args:
        device: Where this process trains.

    Raises:
        InvalidInput: There are more workers than GPUs.
    """
    if not dist.is_torchelastic_launched():
        yield Alone()
        return
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, torch.get_num_threads() // here))
    if here == everywhere:
        _stay_on_this_machine()
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        _take_gpu(int(os.environ["LOCAL_RANK"]), here)
    dist.init_process_group(backend, store=_fresh_store(), rank=int(os.environ["RANK"]), world_size=everywhere)
    yield DataParallel()
    # Only after a good end: where a worker is gone, this would wait for it, and torchrun for the end of this process.
    dist.destroy_process_group()


def _fresh_store() -> Store:
    """Return torchrun's store, where workers find each other, without what those before a restart have left there.

    Torch keeps the store and its names across restarts: now and then a worker would look for a dead one, for ever.
    """
    store, _, _ = next(rendezvous("env://"))
    return PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def _take_gpu(rank: int, count: int) -> None:
    found = torch.cuda.device_count()
    if count > found:
        raise InvalidInput(
            f"workers.count is {count}, but torch finds {found} NVIDIA GPUs here; use {found} or device cpu",
            field="workers.count",
        )
    torch.cuda.set_device(rank)


def _stay_on_this_machine() -> None:
    """Let the workers talk over loopback, where they would take the interface that the machine's name points to."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
