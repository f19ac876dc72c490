"""The trainer service put together; torch is never imported here, only by the process of a run."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prometheus_client.registry import Collector

from aimass.trainer.v1 import data_pb2, training_pb2
from aimass.trainer.v1.data_pb2_grpc import add_DataServiceServicer_to_server
from aimass.trainer.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server
from services.common.errors import Conflict, InvalidInput, NotReady, SettingsError
from services.common.server import Service, StopSignal
from services.trainer.contracts.data import DataServicer
from services.trainer.contracts.training import TrainingServicer
from services.trainer.data.imported import newest_sample
from services.trainer.data.snapshots import read_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.learning import Learning
from services.trainer.metrics import RunFigures
from services.trainer.provenance.tainting import find_deletion
from services.trainer.runs.admission import Admission
from services.trainer.runs.control import RunControl
from services.trainer.runs.launcher import LocalLauncher
from services.trainer.runs.store import RunStore
from services.trainer.runs.supervisor import Supervisor
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

SERVICE_QUEUE = "service"


class TrainerComponent:
    """The database and the processes of runs behind the contracts.

    Args:
        settings: Of the service.
        stop: When it is set, the processes of runs are told to stop.
        queue: Only runs that are created or resumed by components of this queue are started here.
        trusted: Whether all requests come from this machine's command line, and may name code and any folder.

    Raises:
        SettingsError: The database's URL is none.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        stop: StopSignal | None = None,
        *,
        queue: str = SERVICE_QUEUE,
        trusted: bool = False,
    ) -> None:
        self._stop = stop or StopSignal()
        self._stopping: asyncio.Task[None] | None = None
        try:
            self._database = Database(settings.database.get_secret_value())
        except InvalidInput as error:
            raise SettingsError(error.message) from error
        store = RunStore(self._database)
        self._supervisor = Supervisor(
            store,
            LocalLauncher(settings.environment()),
            settings.runs,
            queue=queue,
            most_parallel=settings.max_parallel_runs,
            min_free_bytes=settings.min_free_bytes,
            grace_seconds=settings.stop_grace_seconds,
        )
        roots = (Path("/"),) if trusted else tuple(map(Path, settings.data_roots))
        sources = DataSources(data=settings.data, roots=roots, database=self._database, blobs=settings.blobs)
        admission = Admission(
            store,
            roots,
            trusted=trusted,
            newest_sample=partial(newest_sample, self._database),
            find_snapshot=partial(read_snapshot, self._database),
            find_deletion=partial(find_deletion, self._database),
        )
        control = RunControl(store, self._supervisor, admission, settings.inference_address)
        self.training = TrainingServicer(control, self._stop)
        self.data = DataServicer(self._database, sources, self._stop)
        self._figures = RunFigures(store)
        # A command's own trainer must not drive a second loop on the same database.
        serves = queue == SERVICE_QUEUE
        self.learning = Learning(settings, self._database, sources, store, control, self._stop) if serves else None

    @property
    def services(self) -> Sequence[Service]:
        """The trainer's contracts."""
        learning = self.learning.services if self.learning else ()
        return (
            Service.of(
                training_pb2.DESCRIPTOR.services_by_name["TrainingService"],
                add_TrainingServiceServicer_to_server,
                self.training,
            ),
            Service.of(
                data_pb2.DESCRIPTOR.services_by_name["DataService"], add_DataServiceServicer_to_server, self.data
            ),
            *learning,
        )

    @property
    def collectors(self) -> Sequence[Collector]:
        """How many runs there are, and how the loops stand."""
        return (self._figures, *(self.learning.collectors if self.learning else ()))

    async def start(self) -> None:
        """Bring the database up to date, find runs of an earlier life again, and start what waits.

        Raises:
            SettingsError: The database does not answer, or the folder of runs cannot be used.
        """
        try:
            await asyncio.to_thread(self._database.migrate)
            await self._supervisor.start()
        except (NotReady, Conflict) as error:
            raise SettingsError(error.message) from error
        except OSError as error:
            raise SettingsError(f"the trainer cannot start: {error}; make TRAINER_RUNS a folder of its own") from error
        if self.learning is not None:
            self.learning.start()
        self._stopping = asyncio.create_task(self._stop_runs())

    async def close(self) -> None:
        """Wait until all processes of runs have stopped, then free what is held."""
        if self._stopping is not None:
            self._stopping.cancel()
        if self.learning is not None:
            await self.learning.close()
        await self._supervisor.stop()
        self._database.close()

    async def _stop_runs(self) -> None:
        """Tell runs to stop when the service is told so, while calls are still answered."""
        await self._stop.wait()
        await self._supervisor.stop()
