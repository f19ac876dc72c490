"""The starter model with its encoder, users' pictures of the slice that it has not learnt, and a small base set."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import update

from aimass.starter import RUN_ID, VERSION
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, PreprocessSpec, digest_of
from services.trainer.analyst.analyst import Analyst
from services.trainer.analyst.encoders import Encoders, OpenedEncoder
from services.trainer.data.blobs import Blobs
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.models import Model, create_model
from services.trainer.data.observing import Role, VoteKind, Word, vote
from services.trainer.data.samples import Samples
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.observations import CapturedItem, Intake
from services.trainer.feedback.policy import CapturePolicy, JudgingPolicy, PolicyGroup, RetentionPolicy, TrustPolicy
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.policy import AlarmPolicy, LoopPolicy
from services.trainer.loop.policy import TrustPolicy as LoopTrust
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded

MODEL = "pets"
SPEC = PreprocessSpec(input="image", width=32, height=32)
CAT, DOG, HORSE = LABELS.index("cat"), LABELS.index("dog"), LABELS.index("horse")
PER_CLASS = {"train": 10, "validation": 2, "test": 3}
"""Pictures of the base set."""


class _Groups(PolicyGroup):
    capture: CapturePolicy = CapturePolicy(least_free_bytes=0)
    judging: JudgingPolicy
    trust: TrustPolicy = TrustPolicy()
    retention: RetentionPolicy = RetentionPolicy()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, slice_samples: tuple[Samples, Samples]) -> Path:
    """A set with parts: training pictures of the slice, which the starter model has learnt."""
    folder = tmp_path_factory.mktemp("base")
    public, _ = slice_samples
    for number, label in enumerate(LABELS):
        images = iter(public.images[public.labels == number])
        for part, count in PER_CLASS.items():
            place = folder / part / label
            place.mkdir(parents=True)
            for row in range(count):
                Image.fromarray(next(images)).save(place / f"{row}.png")
    return folder


@pytest.fixture
def settings(tmp_path: Path, base_folder: Path) -> TrainerSettings:
    """Of a home with the run of the starter model; nothing listens where inference should be."""
    run = tmp_path / "runs" / RUN_ID
    run.mkdir(parents=True)
    for name in (GRAPH_FILE, MANIFEST_FILE):
        shutil.copy(VERSION / name, run / name)
    return TrainerSettings(
        database=SecretStr(f"sqlite:///{tmp_path / 'trainer.db'}"),
        runs=tmp_path / "runs",
        data=tmp_path / "data",
        data_roots=(str(base_folder),),
        blobs=tmp_path / "blobs",
        inference_address="127.0.0.1:9",
    )


@pytest.fixture
def database(settings: TrainerSettings) -> Iterator[Database]:
    opened = Database(settings.database.get_secret_value())
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def task(database: Database, base_folder: Path) -> Model:
    """The model, whose traffic is collected beside the base set."""
    task = create_model(database, MODEL, LABELS, SPEC.canonical_json())
    with database.begin() as session:
        row = LoopModelRow(model=MODEL, salt="ab" * 16, base=str(base_folder), create_time="2026-01-02T03:04:05.000Z")
        session.add(row)
    return task


@pytest.fixture
def encoder(database: Database, settings: TrainerSettings, task: Model) -> OpenedEncoder:
    """The encoder of the starter model, in the rows."""
    encoders = Encoders(database, settings.runs)
    encoders.ensure(task, digest_of((VERSION / GRAPH_FILE).read_bytes()))
    found = encoders.current(task)
    assert found is not None
    return found


class Users:
    """Send pictures and say what they are.

    Args:
        database: Migrated, with the model.
        blobs: Folder of pictures.
    """

    def __init__(self, database: Database, blobs: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._sent = 0

    def send(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8] | bytes],
        role: Role = Role.TRAIN,
        **changes: object,
    ) -> list[int]:
        """Send pictures, which get *role*; return their numbers."""
        share = 1e-9 if role is Role.TRAIN else 1 - 1e-9
        intake = Intake(self._database, self._blobs, lambda _: _Groups(judging=JudgingPolicy(share=share)))
        numbers = []
        for start in range(0, len(images), 50):
            items = [self._item(image, changes) for image in images[start : start + 50]]
            taken = intake.take(items)
            assert [each.refusal for each in taken] == [""] * len(items)
            numbers += [each.observation for each in taken]
        intake.close()
        return numbers

    def say(self, numbers: Sequence[int], label: int, *contributors: str, trusted: bool = False) -> None:
        """Say what pictures are, each of *contributors*."""
        with self._database.begin(alone=True) as session:
            for number in numbers:
                row = session.get_one(ObservationRow, number)
                for contributor in contributors:
                    vote(session, row, Word(contributor, VoteKind.LABEL, trusted, label))

    def _item(self, image: NDArray[np.uint8] | bytes, changes: dict[str, object]) -> CapturedItem:
        self._sent += 1
        fields: dict[str, object] = {
            "prediction_id": f"{self._sent:032x}",
            "model": MODEL,
            "version": 1,
            "generation": 1,
            "preprocess_digest": SPEC.digest,
            "image": image if isinstance(image, bytes) else encoded(Image.fromarray(image)),
            "labels": (("cat", 0.5), ("dog", 0.3)),
            "contributor": "anonymous",
            "time": f"2026-01-02T03:04:05.{self._sent % 1000:03d}Z",
            "strategy": "RANDOM",
            "probability": 0.25 if changes.get("strategy", "RANDOM") == "RANDOM" else 0.0,
        }
        return CapturedItem(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def users(database: Database, settings: TrainerSettings, task: Model) -> Users:
    return Users(database, settings.blobs)


@pytest.fixture
def blobs(settings: TrainerSettings) -> Blobs:
    return Blobs(settings.blobs)


POLICY = LoopPolicy(trust=LoopTrust(neighbours=3), alarm=AlarmPolicy(window=20))
"""A class of the base set has more than three times as many members as neighbours are asked."""


@pytest.fixture
def make_analyst(database: Database, settings: TrainerSettings, task: Model) -> Iterator[Callable[..., Analyst]]:
    """A function that makes an analyst: `make_analyst(policy, clock, **settings)`."""
    made = []

    def make(policy: LoopPolicy = POLICY, clock: Callable[[], float] = time.monotonic, **changes: object) -> Analyst:
        told = settings.model_copy(update=changes)
        made.append(Analyst(database, told, MODEL, lambda _: policy, threading.Event(), clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


def work_through(analyst: Analyst) -> None:
    """Let *analyst* do all there is."""
    for _ in range(200):
        if not analyst.step():
            return
    raise AssertionError("the analyst finds ever more to do")


def observation(database: Database, number: int) -> ObservationRow:
    with database.read() as session:
        return session.get_one(ObservationRow, number)


def restate(database: Database, numbers: Sequence[int], **values: object) -> None:
    """Write *values* into the rows of pictures."""
    with database.begin() as session:
        session.execute(update(ObservationRow).where(ObservationRow.number.in_(numbers)).values(**values))


def of_class(samples: Samples, label: int, count: int, skip: int = 0) -> NDArray[np.uint8]:
    """Return pictures of one class."""
    members: NDArray[np.uint8] = samples.images[samples.labels == label]
    return members[skip : skip + count]
