"""The loop put together: what users send becomes samples, and samples become a better model."""

import asyncio
import secrets
import subprocess
from collections.abc import Sequence

from prometheus_client.registry import Collector

from aimass.trainer.v1 import access_pb2, capture_pb2, feedback_pb2, loop_pb2
from aimass.trainer.v1.access_pb2_grpc import add_AccessServiceServicer_to_server
from aimass.trainer.v1.capture_pb2_grpc import add_CaptureServiceServicer_to_server
from aimass.trainer.v1.feedback_pb2_grpc import add_FeedbackServiceServicer_to_server
from aimass.trainer.v1.loop_pb2_grpc import add_LoopServiceServicer_to_server
from services.common.server import Service, StopSignal
from services.trainer.analyst.process import is_at_work, start_analyst
from services.trainer.contracts.access import AccessServicer
from services.trainer.contracts.capture import CaptureServicer
from services.trainer.contracts.feedback import FeedbackServicer
from services.trainer.contracts.loop import LoopServicer
from services.trainer.data.sources import DataSources
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.review import Reviewing
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.views import Versions
from services.trainer.feedback.voting import Voting
from services.trainer.loop.actions import Actions
from services.trainer.loop.bases import BaseSnapshots, settle_base
from services.trainer.loop.director import Director
from services.trainer.loop.directors import Directors
from services.trainer.loop.figures import LoopFigures
from services.trainer.loop.log import EventLog, Leases
from services.trainer.loop.origins import Origins
from services.trainer.loop.policies import Policies
from services.trainer.loop.reading import Reader
from services.trainer.loop.served import Served, traffic_fact
from services.trainer.loop.state import LoopState
from services.trainer.options import RefitOptions
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.erasure import Erasure
from services.trainer.provenance.folders import Folders
from services.trainer.provenance.lineage import Lineage
from services.trainer.provenance.trace import Tracer
from services.trainer.provenance.upkeep import Upkeep
from services.trainer.runs.control import RunControl
from services.trainer.runs.store import RunStore
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database


class Learning:
    """What users send and say, and the loops that learn from it, behind their contracts.

    Args:
        settings: Of the service.
        database: Migrated before `start`.
        sources: Where data sets are found.
        store: Of runs.
        control: Of runs.
        stop: Ends streams when the process stops.

    Attributes:
        capture: Servicer of `CaptureService`.
        feedback: Servicer of `FeedbackService`.
        access: Servicer of `AccessService`.
        loop: Servicer of `LoopService`.

    Raises:
        SettingsError: The policy is wrong.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        database: Database,
        sources: DataSources,
        store: RunStore,
        control: RunControl,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._database = database
        self._sources = sources
        self._analysts: dict[str, subprocess.Popen[bytes]] = {}
        self._running_in: asyncio.AbstractEventLoop | None = None
        policies = Policies(settings.policy)
        events = self._events = EventLog(database)
        leases = Leases(database, secrets.token_hex(16))
        self._served = Served(settings.inference_address)
        self._origins = Origins(database, store, settings.runs)
        reader = Reader(database, events, self._served, store, self._origins, settings.blobs)
        snapshots = BaseSnapshots(database, sources)
        sifter = Sifter(database, policies.of)
        folders = Folders(settings.blobs, sources.prepared, settings.runs)
        lineage = Lineage(database, store, self._origins, settings.runs, settings.blobs)
        erasure = Erasure(database, events, store, lineage, folders, self._graphs, sifter.sift)
        deletions = Deletions(database, events, folders, policies.of)
        self._upkeep = Upkeep(database, settings.blobs, policies.of, deletions, erasure, self._in_use)
        actions = Actions(
            database, events, self._served, control, store, self._origins, snapshots, RefitOptions, erasure
        )

        def make(model: str) -> Director:
            return Director(model, events, leases, reader, actions, policies.of, self._analyse)

        self._directors = Directors(database, self._served, make, settle=self._settle, enabled=settings.loop)
        self._intake = Intake(database, settings.blobs, policies.of)
        voting = Voting(database, settings.blobs, policies.of, sifter)
        reviewing = Reviewing(database, settings.blobs, sifter, self._judged)
        wake = self._directors.wake
        self.capture = CaptureServicer(database, settings.blobs, self._intake, policies.of, stop, wake)
        self.feedback = FeedbackServicer(database, settings.blobs, voting, reviewing, stop, wake)
        self.access = AccessServicer(database, stop)
        tracer = Tracer(database, self._origins, sources, self._graphs)
        self.loop = LoopServicer(database, events, reader, self._directors, policies.of, stop, tracer, deletions)
        self.collectors: Sequence[Collector] = (LoopFigures(database, lambda: self._directors.running),)

    @property
    def services(self) -> Sequence[Service]:
        """The contracts."""
        return (
            Service.of(
                capture_pb2.DESCRIPTOR.services_by_name["CaptureService"],
                add_CaptureServiceServicer_to_server,
                self.capture,
            ),
            Service.of(
                feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
                add_FeedbackServiceServicer_to_server,
                self.feedback,
            ),
            Service.of(
                access_pb2.DESCRIPTOR.services_by_name["AccessService"],
                add_AccessServiceServicer_to_server,
                self.access,
            ),
            Service.of(
                loop_pb2.DESCRIPTOR.services_by_name["LoopService"], add_LoopServiceServicer_to_server, self.loop
            ),
        )

    def start(self) -> None:
        """Begin to drive the loops, and to keep what was collected in order."""
        self._running_in = asyncio.get_running_loop()
        self._directors.start()
        self._upkeep.start()

    async def close(self) -> None:
        """Stop the loops and the analysts; what is cut off is repeated in the next life."""
        await self._directors.stop()
        await self._upkeep.stop()
        await self._served.close()
        self._intake.close()
        for process in self._analysts.values():
            process.terminate()
        for process in self._analysts.values():
            await asyncio.to_thread(process.wait)

    def _analyse(self, model: str) -> None:
        """Let an analyst look at the model's pictures, where none is at it."""
        process = self._analysts.get(model)
        if (process is None or process.poll() is not None) and not is_at_work(self._settings.runs, model):
            self._analysts[model] = start_analyst(model, self._settings)

    def _settle(self, model: str, version: int, graph_digest: str) -> None:
        """Give a model its base: the set that its champion has learnt, where that is here."""
        run = self._origins.run_of(model, version, graph_digest)
        manifest = self._origins.manifest(run.id) if run else None
        training = manifest.training if manifest else None
        wanted = [training.dataset.name] if training else []
        settle_base(self._database, self._sources, model, wanted)

    def _graphs(self) -> dict[str, dict[int, str]]:
        """Return by model and version the digests of all graphs that inference has; to be called in a thread."""
        assert self._running_in is not None, "it is started"
        models = asyncio.run_coroutine_threadsafe(self._served.models(), self._running_in).result()
        return {name: {each.version: each.graph_digest for each in state.versions} for name, state in models.items()}

    def _in_use(self, model: str) -> set[int]:
        """Return the versions with a part in the traffic or the cycle of a model, and the one before; in a thread."""
        assert self._running_in is not None, "it is started"
        found = asyncio.run_coroutine_threadsafe(self._served.model(model), self._running_in).result()
        traffic, cycle = traffic_fact(found), self._events.catch_up(LoopState(model)).cycle
        of_cycle = {cycle.champion, cycle.candidate} if cycle is not None else set()
        return ({traffic.champion, traffic.previous, traffic.canary, traffic.shadow} | of_cycle) - {0}

    def _judged(self, model: str) -> Versions | None:
        """Return the versions that are judged now."""
        for director in self._directors.running:
            cycle = director.state.cycle
            if director.model == model and cycle is not None and cycle.candidate:
                return Versions(cycle.champion, cycle.candidate)
        return None
