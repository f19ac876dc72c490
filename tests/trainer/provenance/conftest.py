"""A trainer's rows and folders, with runs that have learnt from pictures of users, and what is served of them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from services.common.manifest import Graph, Manifest, digest_of
from services.trainer.clock import now
from services.trainer.data.blobs import Blobs
from services.trainer.data.choosing import Caps
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.snapshots import make_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.tables import ContributorRow
from services.trainer.loop.log import EventLog
from services.trainer.loop.origins import Origins
from services.trainer.loop.policy import LoopPolicy
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.erasure import Erasure
from services.trainer.provenance.folders import Folders
from services.trainer.provenance.lineage import Lineage
from services.trainer.recipes import make_options
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import Options, Outcome, Request, RunKind, RunState
from services.trainer.runs.store import RunStore
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import (
    blobs,
    captured,
    intake,
    model,
    pictures,
    policies,
    sifter,
)

__all__ = ["blobs", "intake", "model", "policies", "sifter"]
LABELS = ("cat", "dog", "cow")


@dataclass
class Clock:
    """Gives the time of its making, moved by what has passed by."""

    begin: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    passed: float = 0.0

    def __call__(self) -> datetime:
        return self.begin + timedelta(seconds=self.passed)


@dataclass
class House:
    """All that a deletion touches."""

    database: Database
    folder: Path
    intake: Intake
    sifter: Sifter
    clock: Clock = field(default_factory=Clock)
    served: dict[str, dict[int, str]] = field(default_factory=dict)
    """By model and version the digest of the graph."""

    def __post_init__(self) -> None:
        self.folders = Folders(self.folder / "blobs", self.folder / "data" / "prepared", self.folder / "runs")
        self.blobs = Blobs(self.folders.blobs)
        self.events = EventLog(self.database, self.clock)
        self.store = RunStore(self.database)
        self.origins = Origins(self.database, self.store, self.folders.runs)
        self.sources = DataSources(self.folder / "data", (), self.database, self.folders.blobs)
        self.lineage = Lineage(self.database, self.store, self.origins, self.folders.runs, self.folders.blobs)
        self.deletions = Deletions(self.database, self.events, self.folders, lambda name: LoopPolicy(), self.clock)
        self.erasure = Erasure(
            self.database, self.events, self.store, self.lineage, self.folders, lambda: self.served, self.sifter.sift,
            self.clock,
        )  # fmt: skip

    def capture(self, count: int, contributor: str, seed: int, model: str = "pets", **more: str) -> list[int]:
        """Let somebody ask for answers to *count* pictures; return their numbers."""
        taken = self.intake.take(
            [
                captured(1000 * seed + number, image, contributor=contributor, model=model, **more)
                for number, image in enumerate(pictures(count, seed))
            ]
        )
        return [each.observation for each in taken]

    def say(self, picture: int, contributor: str, label: int, *, trusted: bool = False) -> None:
        """Let somebody label a picture, and judge it."""
        with self.database.begin(alone=True) as session:
            session.merge(ContributorRow(name=contributor, trusted=trusted, blocked=False, create_time=now()))
            session.flush()
            row = session.get_one(ObservationRow, picture)
            vote(session, row, Word(contributor, VoteKind.LABEL, trusted, label))
            name = row.model
        self.sifter.sift(name)

    def snapshot(self, model: str = "pets") -> str:
        """Pin what is accepted now."""
        with self.database.begin(alone=True) as session:
            return make_snapshot(session, model, None, caps=Caps(1.0, 1), base_per_new=0.0).digest

    def run(
        self,
        run_id: str,
        dataset: str = "cifar10-slice",
        state: RunState = RunState.SUCCEEDED,
        *,
        options: Options | None = None,
        **changes: Any,
    ) -> RunFolder:
        """Add a run with the model that it has made."""
        made = options or make_options("quick", {"dataset": dataset, **changes})
        kind = next(each for each in RunKind if each.options is type(made))
        request = Request(id=run_id, kind=kind, options=made, create_time=now())
        folder = RunFolder(self.folders.runs / run_id)
        folder.create(request)
        self.store.create(request, "service")
        if state.final:
            self.store.claim(run_id, "service", 100)
            self.store.finish(run_id, Outcome(state=state, finish_time=now()))
            graph = Graph(sha256=digest_of(run_id.encode()), size_bytes=len(run_id))
            (folder / "model.onnx").write_bytes(run_id.encode())
            (folder / "model.json").write_text(Manifest(labels=LABELS, graph=graph).to_json())
        return folder

    def serve(self, model: str, version: int, run_id: str) -> None:
        """Let inference have a version of what a run has made, as if it was published by hand."""
        self.served.setdefault(model, {})[version] = digest_of(run_id.encode())

    def forget(self, picture: int, request_id: str = "deletion-1") -> str:
        """Ask for a picture's end."""
        return self.deletions.delete_sample(picture, request_id).id

    def picture(self, number: int) -> ObservationRow | None:
        """Return the row of a picture."""
        with self.database.read() as session:
            return session.get(ObservationRow, number)

    def count(self, table: type) -> int:
        """Return how many rows there are."""
        with self.database.read() as session:
            return len(list(session.scalars(select(table))))

    def age(self, picture: int, time: str) -> None:
        """Let a picture have come at another time."""
        with self.database.begin() as session:
            session.execute(update(ObservationRow).where(ObservationRow.number == picture).values(create_time=time))


@pytest.fixture
def house(tmp_path: Path, database: Database, intake: Intake, sifter: Sifter) -> House:
    return House(database, tmp_path, intake, sifter)
