"""The preprocess service put together."""

from collections.abc import AsyncIterable, Callable, Sequence

from prometheus_client.registry import Collector

from aimass.inference.v1 import lifecycle_pb2
from aimass.preprocess.v1 import preprocess_pb2
from aimass.preprocess.v1.preprocess_pb2_grpc import add_PreprocessServiceServicer_to_server
from services.common.server import Service
from services.common.traffic import TrafficFollower
from services.preprocess.decoding import DecodeLimits
from services.preprocess.metrics import PreprocessFigures
from services.preprocess.preparation import MemoryBudget, Preparer
from services.preprocess.servicer import PreprocessServicer
from services.preprocess.settings import PreprocessSettings


class PreprocessComponent:
    """Decoding threads and the specs they follow."""

    def __init__(
        self,
        settings: PreprocessSettings,
        watch_traffic: Callable[[], AsyncIterable[lifecycle_pb2.WatchTrafficResponse]],
    ) -> None:
        self._follower = TrafficFollower(watch_traffic)
        self._preparer = Preparer(
            DecodeLimits(settings.max_image_bytes, settings.max_image_pixels),
            settings.threads,
            MemoryBudget(settings.max_decode_bytes),
            settings.max_waiting_images,
            settings.max_waiting_bytes,
        )
        self._figures = PreprocessFigures(self._follower)
        self.preprocess = PreprocessServicer(
            self._preparer, self._follower, self._figures, settings.max_images, settings.max_message_bytes
        )

    @property
    def services(self) -> Sequence[Service]:
        """The preprocess contract."""
        return (
            Service.of(
                preprocess_pb2.DESCRIPTOR.services_by_name["PreprocessService"],
                add_PreprocessServiceServicer_to_server,
                self.preprocess,
            ),
        )

    @property
    def collectors(self) -> Sequence[Collector]:
        """What is counted of requests and images."""
        return (self._figures.stages, self._figures.images)

    async def start(self) -> None:
        """Wait for the specs."""
        await self._follower.start()

    async def close(self) -> None:
        """Stop following and end the threads."""
        await self._follower.close()
        self._preparer.close()
