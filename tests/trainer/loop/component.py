"""The loop contract with real loops behind it, to be served."""

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.registry import Collector

from aimass.trainer.v1 import loop_pb2
from aimass.trainer.v1.loop_pb2_grpc import add_LoopServiceServicer_to_server
from services.common.server import Service, StopSignal
from services.trainer.contracts.loop import LoopServicer
from services.trainer.data.sources import DataSources
from services.trainer.loop.directors import Directors
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.folders import Folders
from services.trainer.provenance.trace import Tracer
from tests.trainer.loop.home import Home

Graphs = Callable[[], Mapping[str, Mapping[int, str]]]


class LoopComponent:
    """The servicer and the loops behind it."""

    def __init__(
        self, home: Home, folder: Path, stop: StopSignal, *, enabled: bool = True, graphs: Graphs = dict
    ) -> None:
        self.directors = Directors(home.database, home.served, lambda model: home.life("service"), enabled=enabled)
        self.folders = Folders(folder / "blobs", folder / "data" / "prepared", folder / "runs")
        sources = DataSources(folder / "data", (), home.database, self.folders.blobs)
        self._servicer = LoopServicer(
            home.database,
            home.log,
            home.reader,
            self.directors,
            lambda model: home.policy,
            stop,
            Tracer(home.database, home.origins, sources, graphs),
            Deletions(home.database, home.log, self.folders, lambda model: home.policy),
        )

    @property
    def services(self) -> list[Service]:
        name = loop_pb2.DESCRIPTOR.services_by_name["LoopService"]
        return [Service.of(name, add_LoopServiceServicer_to_server, self._servicer)]

    @property
    def collectors(self) -> list[Collector]:
        return []

    async def start(self) -> None:
        self.directors.start()

    async def close(self) -> None:
        await self.directors.stop()
