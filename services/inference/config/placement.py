"""Where the instances of a model run: on the CPU or on which GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, Unsupported
from services.inference.engine import Arrays, Device, OnnxModel

Kind = pb.ModelInstanceGroup


@dataclass(frozen=True)
class Placement:
    """The device of one instance."""

    device: Device
    gpu: int | None = None


def placements(config: pb.ModelConfig | None, device: Device, gpus: int) -> tuple[Placement, ...]:
    """Return one placement for each instance.

    Args:
        config: Of the model; one without instance groups has a single group of one instance.
        device: The service's setting.
        gpus: How many are there.

    Raises:
        InvalidInput: A group wants a GPU that is not there.
        Unsupported: A group runs where nothing runs here.
    """
    groups = list(config.instance_group) if config is not None else []
    return tuple(
        place
        for group in groups or [pb.ModelInstanceGroup()]
        for place in _group_placements(group, device, gpus)
        for _ in range(group.count or 1)
    )


def _group_placements(group: pb.ModelInstanceGroup, device: Device, gpus: int) -> list[Placement]:
    if group.kind == Kind.KIND_MODEL:
        raise Unsupported("instance_group has KIND_MODEL, which is not supported; use KIND_CPU, KIND_GPU or KIND_AUTO")
    if group.kind == Kind.KIND_CPU:
        if group.gpus:
            raise InvalidInput(f"instance_group has KIND_CPU and gpus {list(group.gpus)}; remove one of them")
        return [Placement("cpu")]
    missing = [gpu for gpu in group.gpus if not 0 <= gpu < gpus]
    if group.kind == Kind.KIND_GPU:
        _require_gpus(missing, device, gpus)
    elif device == "cpu" or not gpus or missing:
        return [Placement("cuda" if device == "cuda" else "cpu")]
    return [Placement("cuda", gpu) for gpu in group.gpus or range(gpus)]


def _require_gpus(missing: Sequence[int], device: Device, gpus: int) -> None:
    if device == "cpu":
        raise InvalidInput(
            "instance_group has KIND_GPU, but INFERENCE_DEVICE is cpu; use KIND_CPU or KIND_AUTO, or set it to auto"
        )
    if missing or not gpus:
        raise InvalidInput(
            f"instance_group has KIND_GPU and gpus {list(missing) or '[]'}; {gpus} GPUs were found here, counted "
            "from 0; use KIND_CPU or KIND_AUTO, or name those that are there"
        )


class Instances:
    """The same graph on several devices; each run takes one that is free."""

    def __init__(self, graphs: Sequence[OnnxModel]) -> None:
        self._free: SimpleQueue[OnnxModel] = SimpleQueue()
        for graph in graphs:
            self._free.put(graph)

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Do as `OnnxModel.run`."""
        graph = self._free.get()
        try:
            return graph.run(inputs, outputs)
        finally:
            self._free.put(graph)
