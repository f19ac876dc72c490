"""Measures versions from outside, on pictures that nobody ever sends as a user."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from aimass.demo.pictures import Picture
from aimass.demo.users import MODEL
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.channels import open_channel
from services.trainer.data.cifar10 import LABELS

AT_ONCE = 25


class Referee:
    """Asks for answers to tensors, which are not captured, of versions that may have no traffic.

    Args:
        address: Of the suite.
        pictures: Measured on.

    Attributes:
        accuracies: Of each version that was measured, 0 to 1.
    """

    def __init__(self, address: str, pictures: Sequence[Picture]) -> None:
        self._address = address
        self._images = np.stack([np.asarray(Image.open(io.BytesIO(each.png)).convert("RGB")) for each in pictures])
        self._labels = np.array([LABELS.index(each.label) for each in pictures])
        self.accuracies: dict[int, float] = {}

    async def measure(self, version: int) -> float:
        """Return the accuracy of *version*; each is measured once.

        Raises:
            grpc.aio.AioRpcError: It is not loaded.
        """
        if version not in self.accuracies:
            right = 0
            async with open_channel(self._address) as channel:
                stub = GRPCInferenceServiceStub(channel)
                for first in range(0, len(self._images), AT_ONCE):
                    images = self._images[first : first + AT_ONCE]
                    request = pb.ModelInferRequest(model_name=MODEL, model_version=str(version))
                    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
                    request.inputs.append(tensor)
                    request.raw_input_contents.append(images.tobytes())
                    answer = await stub.ModelInfer(request)
                    best = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(len(images), -1).argmax(1)
                    right += int((best == self._labels[first : first + AT_ONCE]).sum())
            self.accuracies[version] = right / len(self._images)
        return self.accuracies[version]
