"""A gateway before real inference and preprocessing, and before a trainer that writes down what it is asked."""

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx

from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from aimass.trainer.v1 import access_pb2, capture_pb2, data_pb2, feedback_pb2, loop_pb2
from aimass.trainer.v1.access_pb2_grpc import (
    AccessServiceServicer,
    AccessServiceStub,
    add_AccessServiceServicer_to_server,
)
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceStub, add_CaptureServiceServicer_to_server
from aimass.trainer.v1.data_pb2_grpc import DataServiceServicer, add_DataServiceServicer_to_server
from aimass.trainer.v1.feedback_pb2_grpc import (
    FeedbackServiceServicer,
    FeedbackServiceStub,
    add_FeedbackServiceServicer_to_server,
)
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceServicer, LoopServiceStub, add_LoopServiceServicer_to_server
from gateway.backends import OFFERED_BY_TRAINER, Backends
from gateway.capture import Capture
from gateway.forwarding import forwarded_service
from gateway.service import GatewayComponent
from gateway.settings import GatewaySettings
from services.common.channels import open_channel
from services.common.direct import direct_call
from services.common.errors import NotFound
from services.common.identity import Caller, caller_of
from services.common.server import Service
from services.preprocess.service import PreprocessComponent
from services.preprocess.settings import PreprocessSettings
from tests.end_to_end.suite import Ports, eventually
from tests.gateway.capturing import Trainer


@dataclass
class Heard:
    """A call that reached the trainer."""

    request: object
    caller: Caller
    metadata: dict[str, str | bytes] = field(default_factory=dict)


class LearningTrainer(
    Trainer, FeedbackServiceServicer, AccessServiceServicer, LoopServiceServicer, DataServiceServicer
):
    """All that the gateway needs of a trainer; its answers are as simple as may be."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []
        self.state = feedback_pb2.Observation.STATE_PENDING
        """Of each picture of which something is said."""
        self.state_reason = "NEEDS_VOTES"
        self.tells_keys = True
        """Whether it says which keys there are."""
        self._keys: dict[str, access_pb2.ValidKey] = {}

    async def start(self, max_message_bytes: int = 4 * 1024 * 1024) -> str:
        """Listen, at the same address as before, and return it."""
        services = [
            Service.of(module.DESCRIPTOR.services_by_name[name], add, self)
            for module, name, add in (
                (capture_pb2, "CaptureService", add_CaptureServiceServicer_to_server),
                (feedback_pb2, "FeedbackService", add_FeedbackServiceServicer_to_server),
                (access_pb2, "AccessService", add_AccessServiceServicer_to_server),
                (loop_pb2, "LoopService", add_LoopServiceServicer_to_server),
                (data_pb2, "DataService", add_DataServiceServicer_to_server),
            )
        ]
        return await self.listen(services, max_message_bytes)

    def _hear(self, request, context) -> None:
        self.heard.append(Heard(request, caller_of(context), dict(context.invocation_metadata())))

    async def give(self, secret: str, contributor: str, *scopes: str, trusted: bool = False) -> None:
        """Make a key valid."""
        self._keys[secret] = access_pb2.ValidKey(
            digest=hashlib.sha256(secret.encode()).digest(),
            contributor=contributor,
            scopes=[access_pb2.Scope.Value(f"SCOPE_{each.upper()}") for each in scopes],
            trusted=trusted,
        )
        await self.wake()

    async def revoke(self, secret: str) -> None:
        """Make a key invalid."""
        del self._keys[secret]
        await self.wake()

    async def WatchKeys(self, request, context):
        """Send all keys, now and after each change."""
        await self.until(lambda: self.tells_keys)
        while True:
            told = dict(self._keys)
            yield access_pb2.WatchKeysResponse(keys=told.values())
            await self.until(lambda told=told: told != self._keys)

    async def SendFeedback(self, request, context):
        """Take in a verdict."""
        self._hear(request, context)
        if request.prediction_id == "unknown":
            raise NotFound("prediction 'unknown' was not captured; send its image and model")
        return feedback_pb2.SendFeedbackResponse(
            state=self.state, state_reason=self.state_reason, created=True, observation_id=4
        )

    async def ListObservations(self, request, context):
        """Return one."""
        self._hear(request, context)
        observation = feedback_pb2.Observation(
            id=4, state=feedback_pb2.Observation.STATE_QUARANTINED, label="red", label_probability=0.5
        )
        observation.create_time.FromSeconds(1_700_000_000)
        return feedback_pb2.ListObservationsResponse(observations=[observation], waiting_count=1)

    async def GetObservationImage(self, request, context):
        """Return a picture."""
        self._hear(request, context)
        return feedback_pb2.GetObservationImageResponse(image=b"picture", format="JPEG", orientation=6)

    async def ReviewObservation(self, request, context):
        """Take in a decision."""
        self._hear(request, context)
        return feedback_pb2.ReviewObservationResponse(observation=feedback_pb2.Observation(id=request.id))

    async def CreateKey(self, request, context):
        """Return no secret."""
        self._hear(request, context)
        return access_pb2.CreateKeyResponse()

    async def ListSamples(self, request, context):
        """Return none."""
        self._hear(request, context)
        return data_pb2.ListSamplesResponse()

    async def GetLoop(self, request, context):
        """Say that a cycle is being trained for."""
        self._hear(request, context)
        cycle = loop_pb2.Cycle(number=2, stage=loop_pb2.Cycle.STAGE_RUN)
        cycle.start_time.FromSeconds(1_700_000_000)
        cycle.stage_durations["snapshot"].FromMilliseconds(1_500)
        return loop_pb2.GetLoopResponse(enabled=True, cycle=cycle, policy_json='{"a": 1}')

    async def ListEvents(self, request, context):
        """Return one."""
        self._hear(request, context)
        event = loop_pb2.Event(number=request.after + 1, kind="promoted", payload_json='{"version": 3}')
        return loop_pb2.ListEventsResponse(events=[event])

    async def WatchEvents(self, request, context):
        """Send one."""
        self._hear(request, context)
        yield loop_pb2.WatchEventsResponse(event=loop_pb2.Event(number=request.after + 1, kind="promoted"))

    async def GetAnalysis(self, request, context):
        """Return both forms."""
        self._hear(request, context)
        return loop_pb2.GetAnalysisResponse(analysis_json=b'{"accuracy": 1}', analysis_html=b"<p>fine</p>")

    async def TriggerCycle(self, request, context):
        """Begin."""
        self._hear(request, context)
        return loop_pb2.TriggerCycleResponse(cycle=loop_pb2.Cycle(number=3))

    async def ProposeVersion(self, request, context):
        """Begin."""
        self._hear(request, context)
        return loop_pb2.ProposeVersionResponse(cycle=loop_pb2.Cycle(number=3, goal=request.goal))

    async def TracePrediction(self, request, context):
        """Return one sample."""
        self._hear(request, context)
        sample = loop_pb2.TracedSample(sample_id=5, label="red", similarity=0.5)
        return loop_pb2.TracePredictionResponse(model="tiny", version=2, samples=[sample])

    async def DeleteSample(self, request, context):
        """Begin."""
        self._hear(request, context)
        return loop_pb2.DeleteSampleResponse(deletion=loop_pb2.Deletion(id=request.request_id, tainted_versions=[2]))

    async def DeleteContributor(self, request, context):
        """Begin."""
        self._hear(request, context)
        return loop_pb2.DeleteContributorResponse(deletion=loop_pb2.Deletion(id=request.request_id))

    async def GetDeletion(self, request, context):
        """Say that it is over."""
        self._hear(request, context)
        over = loop_pb2.Deletion(id=request.id, state=loop_pb2.Deletion.STATE_COMPLETED, report_json='{"rows": 0}')
        return loop_pb2.GetDeletionResponse(deletion=over)

    async def PromoteCandidate(self, request, context):
        """Do it."""
        self._hear(request, context)
        return loop_pb2.PromoteCandidateResponse(event=loop_pb2.Event(number=9, kind="wish.promote"))

    async def RejectCandidate(self, request, context):
        """Do it."""
        self._hear(request, context)
        return loop_pb2.RejectCandidateResponse(event=loop_pb2.Event(number=9, kind="wish.reject"))

    async def RollBack(self, request, context):
        """Do it."""
        self._hear(request, context)
        return loop_pb2.RollBackResponse(event=loop_pb2.Event(number=9, kind="wish.rollback"), stable_version=2)


@dataclass(frozen=True)
class Door:
    """A gateway, and who may be asked there."""

    trainer: LearningTrainer
    address: str
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    component: GatewayComponent

    @property
    def capture(self) -> Capture:
        """What is captured."""
        return self.component._capture

    def access_knows(self, secret: str) -> bool:
        """Whether the gateway has heard of a key."""
        return self.component._keys.find(secret) is not None

    @property
    def stub(self) -> GatewayServiceStub:
        """Of the gateway."""
        return GatewayServiceStub(self.channel)


@asynccontextmanager
async def open_door(serve, inference, trainer: LearningTrainer, **settings) -> AsyncIterator[Door]:
    """Serve a gateway until the end; it has heard of policies, and of keys where the trainer tells of them."""
    lifecycle = ModelLifecycleServiceStub(inference.channel)

    def watch():
        return lifecycle.WatchTraffic(lifecycle_pb2.WatchTrafficRequest())

    preprocess = PreprocessComponent(PreprocessSettings(threads=1), watch)
    await preprocess.start()
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(await trainer.start()))
        journal = stack.enter_context(tempfile.TemporaryDirectory())
        access = AccessServiceStub(channel)

        def make(stop):
            backends = Backends(
                preprocess=direct_call(preprocess.preprocess.Preprocess),
                classify=InferenceServiceStub(inference.channel).Classify,
                open_inference=GRPCInferenceServiceStub(inference.channel),
                watch_traffic=watch,
                ready=_ready,
                capture=CaptureServiceStub(channel).Capture,
                watch_keys=lambda: access.WatchKeys(access_pb2.WatchKeysRequest()),
                feedback=FeedbackServiceStub(channel),
                loop=LoopServiceStub(channel),
                forwarded=[
                    forwarded_service(
                        inference.channel, grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], stop
                    ),
                    *(forwarded_service(channel, each, stop) for each in OFFERED_BY_TRAINER),
                ],
            )
            port = Ports.free().http
            ports.append(port)
            return GatewayComponent(
                GatewaySettings(http_port=port, capture_journal=Path(journal), **settings), backends, stop
            )

        ports: list[int] = []
        served = await serve(make)
        component = served.component
        await eventually(
            lambda: (
                component._keys.known is trainer.tells_keys
                and (component._capture._samplers or not trainer.policies.policies)
            )
        )
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", trust_env=False, timeout=60) as http:
            yield Door(trainer, served.address, served.channel, http, component)
        await trainer.stop()
    await preprocess.close()


async def _ready() -> bool:
    return True
