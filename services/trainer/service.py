"""The trainer service put together; torch is never imported here, only by the process of a run."""

from collections.abc import Sequence

from prometheus_client.registry import Collector

from aimass.trainer.v1 import trainer_pb2
from aimass.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
from services.common.server import Service
from services.trainer.contracts.training import TrainerServicer
from services.trainer.metrics import RunFigures
from services.trainer.settings import TrainerSettings


class TrainerComponent:
    """The folder of runs behind its contract."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._runs_dir = settings.runs
        self.trainer = TrainerServicer(settings.runs)

    @property
    def services(self) -> Sequence[Service]:
        """The trainer contract."""
        return (
            Service.of(
                trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"],
                add_TrainerServiceServicer_to_server,
                self.trainer,
            ),
        )

    @property
    def collectors(self) -> Sequence[Collector]:
        """How many runs there are."""
        return (RunFigures(self._runs_dir),)

    async def start(self) -> None:
        """Make sure that the folder of runs exists."""
        self._runs_dir.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        """Hold nothing, free nothing."""
