"""What the gateway needs from the services behind it, and how to reach them as processes of their own."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from aimass.inference.v1 import inference_pb2, lifecycle_pb2
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from aimass.preprocess.v1 import preprocess_pb2
from aimass.preprocess.v1.preprocess_pb2_grpc import PreprocessServiceStub
from aimass.trainer.v1 import access_pb2, data_pb2, feedback_pb2, loop_pb2, training_pb2
from aimass.trainer.v1.access_pb2_grpc import AccessServiceStub
from aimass.trainer.v1.capture_pb2 import CaptureRequest, CaptureResponse
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceStub
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from gateway.forwarding import forwarded_service
from gateway.settings import GatewaySettings
from services.common.channels import open_channel
from services.common.direct import UnaryCall
from services.common.server import Service, StopSignal

if TYPE_CHECKING:
    from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub
    from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub
    from aimass.trainer.v1.loop_pb2_grpc import LoopServiceAsyncStub

OFFERED_BY_TRAINER: Sequence[ServiceDescriptor] = (
    training_pb2.DESCRIPTOR.services_by_name["TrainingService"],
    data_pb2.DESCRIPTOR.services_by_name["DataService"],
    feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
    access_pb2.DESCRIPTOR.services_by_name["AccessService"],
    loop_pb2.DESCRIPTOR.services_by_name["LoopService"],
)
"""The trainer's services that users may call; its others are spoken between the gateway and the trainer."""
HEALTH_SECONDS = 1.0
"""How long a service behind the gateway may take to say that it is well."""


@dataclass(frozen=True)
class Backends:
    """The seam between the two deployments; everything else of the gateway is the same in both."""

    preprocess: UnaryCall[preprocess_pb2.PreprocessRequest, preprocess_pb2.PreprocessResponse]
    """Images -> the request to run."""
    classify: UnaryCall[inference_pb2.ClassifyRequest, inference_pb2.ClassifyResponse]
    """The request -> classes."""
    open_inference: "GRPCInferenceServiceAsyncStub"
    """The unary methods of the Open Inference Protocol, for what comes over HTTP."""
    watch_traffic: Callable[[], AsyncIterable[lifecycle_pb2.WatchTrafficResponse]]
    """State of all models, now and after each change."""
    ready: Callable[[], Awaitable[bool]]
    """Whether all services that a prediction needs answer."""
    capture: Callable[[AsyncIterator[CaptureRequest]], AsyncIterable[CaptureResponse]]
    """Captured predictions -> policies and receipts."""
    watch_keys: Callable[[], AsyncIterable[access_pb2.WatchKeysResponse]]
    """All valid keys, now and after each change."""
    feedback: "FeedbackServiceAsyncStub"
    """The unary methods of feedback and reviews."""
    loop: "LoopServiceAsyncStub"
    """The unary methods of the loop."""
    forwarded: Sequence[Service]
    """Services that the public gRPC port passes through."""


@asynccontextmanager
async def connected_backends(settings: GatewaySettings, stop: StopSignal) -> AsyncIterator[Backends]:
    """Reach the services over gRPC; channels close at the end."""
    addresses = (settings.preprocess_address, settings.inference_address, settings.trainer_address)
    async with AsyncExitStack() as stack:
        preprocess, inference, trainer = [
            await stack.enter_async_context(open_channel(address)) for address in addresses
        ]
        lifecycle, access = ModelLifecycleServiceStub(inference), AccessServiceStub(trainer)
        probes = [HealthStub(channel) for channel in (preprocess, inference)]
        yield Backends(
            preprocess=PreprocessServiceStub(preprocess).Preprocess,
            classify=InferenceServiceStub(inference).Classify,
            open_inference=GRPCInferenceServiceStub(inference),
            watch_traffic=lambda: lifecycle.WatchTraffic(lifecycle_pb2.WatchTrafficRequest()),
            ready=lambda: _all_serving(probes),
            capture=CaptureServiceStub(trainer).Capture,
            watch_keys=lambda: access.WatchKeys(access_pb2.WatchKeysRequest()),
            feedback=FeedbackServiceStub(trainer),
            loop=LoopServiceStub(trainer),
            forwarded=[
                forwarded_service(
                    inference, grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], stop
                ),
                *(forwarded_service(trainer, each, stop) for each in OFFERED_BY_TRAINER),
            ],
        )


async def _all_serving(probes: Sequence[HealthStub]) -> bool:
    for probe in probes:
        try:
            answer = await probe.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return False
    return True
