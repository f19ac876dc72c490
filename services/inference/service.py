"""The inference service put together."""

from collections.abc import Sequence

from prometheus_client.registry import Collector

from aimass.inference.v1 import inference_pb2, lifecycle_pb2
from aimass.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from aimass.inference.v1.lifecycle_pb2_grpc import add_ModelLifecycleServiceServicer_to_server
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from services.common.server import Service, StopSignal
from services.inference.contracts.lifecycle import LifecycleServicer
from services.inference.contracts.open_inference import OpenInferenceServicer
from services.inference.contracts.servicer import InferenceServicer
from services.inference.metrics import ModelFigures
from services.inference.models.serving import ModelServer
from services.inference.settings import InferenceSettings


class InferenceComponent:
    """Models in memory and the three contracts over them."""

    def __init__(self, settings: InferenceSettings, stop: StopSignal) -> None:
        self._models = ModelServer(settings)
        self.open_inference = OpenInferenceServicer(self._models, stop, settings.max_message_bytes)
        self.inference = InferenceServicer(self._models)
        self.lifecycle = LifecycleServicer(self._models, stop, settings.max_model_bytes)

    @property
    def services(self) -> Sequence[Service]:
        """Open Inference Protocol, typed classification, lifecycle."""
        return (
            Service.of(
                grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
                add_GRPCInferenceServiceServicer_to_server,
                self.open_inference,
            ),
            Service.of(
                inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
                add_InferenceServiceServicer_to_server,
                self.inference,
            ),
            Service.of(
                lifecycle_pb2.DESCRIPTOR.services_by_name["ModelLifecycleService"],
                add_ModelLifecycleServiceServicer_to_server,
                self.lifecycle,
            ),
        )

    @property
    def collectors(self) -> Sequence[Collector]:
        """What is counted of each version."""
        return (ModelFigures(self._models),)

    async def start(self) -> None:
        """Load all models."""
        await self._models.start()

    async def close(self) -> None:
        """Free all graphs."""
        self.open_inference.close()
        await self._models.close()
