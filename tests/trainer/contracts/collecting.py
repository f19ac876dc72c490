"""The contracts of capture, feedback and access over a real server, with nothing else beside them."""

from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from prometheus_client.registry import Collector

from aimass.trainer.v1 import access_pb2, capture_pb2, feedback_pb2
from aimass.trainer.v1.access_pb2_grpc import add_AccessServiceServicer_to_server
from aimass.trainer.v1.capture_pb2_grpc import add_CaptureServiceServicer_to_server
from aimass.trainer.v1.feedback_pb2_grpc import add_FeedbackServiceServicer_to_server
from services.common.identity import Caller, Scope, caller_metadata
from services.common.server import Service, StopSignal
from services.trainer.contracts.access import AccessServicer
from services.trainer.contracts.capture import CaptureServicer
from services.trainer.contracts.feedback import FeedbackServicer
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import create_model
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.review import Reviewing
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.voting import Voting
from services.trainer.loop.log import EventLog
from services.trainer.loop.policy import LoopPolicy
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.folders import Folders
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import SPEC, Groups


class Component:
    """One model `pets`; whoever is woken is written down."""

    def __init__(self, folder: Path, stop: StopSignal) -> None:
        self.database = Database(f"sqlite:///{folder / 'trainer.db'}")
        self.database.migrate()
        create_model(self.database, "pets", ["cat", "dog", "cow"], SPEC.canonical_json())
        self.blobs = Blobs(folder / "blobs")
        self.policy = Groups()
        self.woken: list[str] = []
        self.intake = Intake(self.database, self.blobs.folder, self.policy_of)
        sifter = Sifter(self.database, self.policy_of)
        voting = Voting(self.database, self.blobs.folder, self.policy_of, sifter)
        reviewing = Reviewing(self.database, self.blobs.folder, sifter)
        wake = self.woken.append
        self.access = AccessServicer(self.database, stop)
        self.capture = CaptureServicer(self.database, self.blobs.folder, self.intake, self.policy_of, stop, wake)
        self.feedback = FeedbackServicer(self.database, self.blobs.folder, voting, reviewing, stop, wake)

    def policy_of(self, model: str) -> Groups:
        assert model == "pets"
        return self.policy

    @property
    def services(self) -> Sequence[Service]:
        offered = (
            (access_pb2, "AccessService", add_AccessServiceServicer_to_server, self.access),
            (capture_pb2, "CaptureService", add_CaptureServiceServicer_to_server, self.capture),
            (feedback_pb2, "FeedbackService", add_FeedbackServiceServicer_to_server, self.feedback),
        )
        return [
            Service.of(module.DESCRIPTOR.services_by_name[name], add, servicer)
            for module, name, add, servicer in offered
        ]

    @property
    def collectors(self) -> Sequence[Collector]:
        return ()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.intake.close()
        self.database.close()


def called_by(name: str, *scopes: Scope, trusted: bool = False) -> tuple[tuple[str, bytes], ...]:
    """Return the metadata by which the gateway names who calls."""
    return (caller_metadata(Caller(name, frozenset(scopes), trusted)),)


def delete_contributor(database: Database, name: str) -> None:
    """Let somebody ask for the end of all that they have given."""
    nowhere = Folders(Path("blobs"), Path("prepared"), Path("runs"))
    Deletions(database, EventLog(database), nowhere, lambda _: LoopPolicy()).delete_contributor(name, f"of-{name}")


async def refused(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""
