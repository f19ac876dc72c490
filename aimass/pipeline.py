"""The whole suite in one process: the same components, called directly instead of over sockets."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from prometheus_client.registry import Collector

from aimass.inference.v1 import lifecycle_pb2
from aimass.open_inference import grpc_service_pb2
from aimass.trainer.v1 import access_pb2
from gateway.backends import OFFERED_BY_TRAINER, Backends
from gateway.service import GatewayComponent
from gateway.settings import GatewaySettings
from services.common.channels import host_and_port
from services.common.direct import DirectContext, UnaryCall, direct_call
from services.common.errors import SettingsError
from services.common.server import GrpcServer, Service, StopSignal, serve
from services.common.settings import load_settings
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from services.preprocess.service import PreprocessComponent
from services.preprocess.settings import PreprocessSettings
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub
    from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub
    from aimass.trainer.v1.loop_pb2_grpc import LoopServiceAsyncStub


class Pipeline:
    """All four components; the gateway's calls reach the others without a socket.

    Inference listens on its own port too: training runs publish there, as they do in the other mode.
    """

    def __init__(
        self,
        gateway: GatewaySettings,
        preprocess: PreprocessSettings,
        inference: InferenceSettings,
        trainer: TrainerSettings,
        stop: StopSignal,
    ) -> None:
        self._inference_settings = inference
        self._inference = InferenceComponent(inference, stop)
        self._preprocess = PreprocessComponent(preprocess, self._watch_traffic)
        self._trainer = TrainerComponent(trainer, stop)
        self._gateway = GatewayComponent(gateway, self._backends(), stop)
        self._publishing = GrpcServer(
            host_and_port(inference.host, inference.port),
            self._inference.services,
            max_message_bytes=inference.max_message_bytes,
            max_concurrent_calls=inference.max_concurrent_calls,
        )

    @property
    def services(self) -> Sequence[Service]:
        """What the gateway offers."""
        return self._gateway.services

    @property
    def collectors(self) -> Sequence[Collector]:
        """What all four count."""
        return [
            collector
            for component in (self._gateway, self._preprocess, self._inference, self._trainer)
            for collector in component.collectors
        ]

    async def start(self) -> None:
        """Start in the order in which data flows back: models, publishing, specs, the public edge."""
        await self._publishing.start()
        await self._inference.start()
        await self._publishing.set_ready(True)
        try:
            await self._trainer.start()
        except SettingsError:
            await self._publishing.stop(0)
            raise
        await self._preprocess.start()
        await self._gateway.start()

    async def close(self) -> None:
        """Stop in the opposite order; the public gRPC port has stopped already."""
        await self._gateway.close()
        await self._preprocess.close()
        await self._trainer.close()
        await self._publishing.stop(self._inference_settings.stop_grace_seconds)
        await self._inference.close()

    def _backends(self) -> Backends:
        open_inference = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
        offered = {service.name: service for service in self._inference.services}
        for_users = {service.full_name for service in OFFERED_BY_TRAINER}
        learning = self._trainer.learning
        assert learning is not None, "only the trainers of commands have none"
        return Backends(
            preprocess=direct_call(self._preprocess.preprocess.Preprocess),
            classify=direct_call(self._inference.inference.Classify),
            open_inference=cast("GRPCInferenceServiceAsyncStub", _DirectStub(self._inference.open_inference)),
            watch_traffic=self._watch_traffic,
            ready=_always_ready,
            capture=lambda requests: learning.capture.Capture(requests, cast("Any", DirectContext(None, None))),
            watch_keys=lambda: learning.access.WatchKeys(
                access_pb2.WatchKeysRequest(), cast("Any", DirectContext(None, None))
            ),
            feedback=cast("FeedbackServiceAsyncStub", _DirectStub(learning.feedback)),
            loop=cast("LoopServiceAsyncStub", _DirectStub(learning.loop)),
            forwarded=[offered[open_inference], *(each for each in self._trainer.services if each.name in for_users)],
        )

    def _watch_traffic(self) -> Any:
        return self._inference.lifecycle.WatchTraffic(lifecycle_pb2.WatchTrafficRequest())


class _DirectStub:
    """Offers the unary methods of a servicer as its stub does."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, method: str) -> UnaryCall[Any, Any]:
        return direct_call(getattr(self._servicer, method))


async def _always_ready() -> bool:
    """In one process a service cannot be away by itself."""
    return True


async def run_pipeline(stop: StopSignal, on_ready: Callable[[], None]) -> None:
    """Run the suite in this process until *stop*.

    Raises:
        SettingsError: The environment is wrong or a port is taken.
    """
    gateway = load_settings(GatewaySettings).model_copy(update={"metrics_sources": ()})  # all of it is in here
    pipeline = Pipeline(
        gateway,
        load_settings(PreprocessSettings),
        load_settings(InferenceSettings),
        load_settings(TrainerSettings),
        stop,
    )
    await serve(pipeline, gateway, gateway.grpc_port, stop, on_ready)
