"""What lies next to a picture is found by features, and copies by pixels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from sqlalchemy import select

from services.trainer.analyst.basis import embed_basis, load_basis
from services.trainer.analyst.embedding import embed_observations
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.placing import Ground, place
from services.trainer.analyst.spaces import FeatureSpace
from services.trainer.analyst.stored import StoredPictures
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.feedback.tables import FindingRow, NeighbourhoodRow
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import CAT, DOG, HORSE, MODEL, Users, observation, of_class, restate


class Placing:
    """Embeds and places pictures."""

    def __init__(
        self, database: Database, settings: TrainerSettings, task: Model, encoder: OpenedEncoder, base: str
    ) -> None:
        sources = DataSources(settings.data, tuple(map(Path, settings.data_roots)), database, settings.blobs)
        self.basis = load_basis(base, task, sources)
        features = embed_basis(self.basis, encoder, settings.data, lambda: None)
        self.space = FeatureSpace(MODEL, encoder.digest, encoder.width)
        self.ground = Ground(task, self.space, self.basis, features)
        self._database, self._encoder = database, encoder
        self._pictures = StoredPictures(Blobs(settings.blobs))

    def __call__(self, numbers: list[int], k: int = 5) -> None:
        embed_observations(self._database, self._pictures, self._encoder, numbers)
        with self._database.read() as session:
            self.space.refresh(session)
        place(self._database, self._pictures, self.ground, numbers, k)


@pytest.fixture
def placing(
    database: Database, settings: TrainerSettings, task: Model, encoder: OpenedEncoder, base_folder: Path
) -> Placing:
    return Placing(database, settings, task, encoder, str(base_folder))


def neighbourhood(database: Database, number: int) -> NeighbourhoodRow:
    with database.read() as session:
        return session.get_one(NeighbourhoodRow, number)


def near_copies(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(FindingRow.observation).where(FindingRow.kind == "NEAR_COPY")))


def brighter(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.1))


def compressed(image: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_the_label_of_a_picture_is_frequent_among_its_neighbours(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send(of_class(slice_samples[1], HORSE, 8))

    placing(numbers)

    rows = [neighbourhood(database, number) for number in numbers]
    assert sum(row.lifts.get(str(HORSE), 0.0) > 5 for row in rows) >= 6  # the encoder knows its horses
    assert {row.members[str(CAT)] for row in rows} == {12}
    assert all(len(row.members) == 10 and set(row.lifts) <= set(row.members) for row in rows)
    assert all(np.isclose(sum(value * 12 / 120 for value in row.lifts.values()), 1.0) for row in rows)


def test_accepted_pictures_are_neighbours_and_none_is_its_own(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    horses = of_class(slice_samples[1], HORSE, 3)
    numbers = users.send([horses[0], horses[1], brighter(horses[0])])
    restate(database, numbers[:2], state="ACCEPTED", label=DOG, changed_number=50)

    placing(numbers, k=1)

    assert neighbourhood(database, numbers[2]).lifts == {str(DOG): pytest.approx(122 / 14)}  # what it copies
    own = neighbourhood(database, numbers[0])
    assert str(DOG) not in own.lifts
    assert own.members[str(DOG)] == 14


def test_without_a_base_set_and_samples_nothing_is_next_to_a_picture(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send(slice_samples[1].images[:2])
    placing.ground = Ground(placing.ground.task, placing.space, None, None)

    placing(numbers)

    row = neighbourhood(database, numbers[0])
    assert (row.lifts, set(row.members.values())) == ({}, {0})


@pytest.mark.parametrize("judge_first", [True, False])
def test_a_copy_of_what_judges_is_found_whichever_came_first(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples], judge_first: bool
) -> None:
    images = slice_samples[1].images
    judges = users.send(images[:4], Role.JUDGE) if judge_first else []
    if judge_first:
        placing(judges)
    copies = users.send([brighter(images[0]), compressed(images[1])])
    others = users.send(images[10:14])
    placing(copies + others)
    if not judge_first:
        assert near_copies(database) == []
        placing(users.send(images[:4], Role.JUDGE))

    assert near_copies(database) == copies
    assert [observation(database, number).stale for number in copies + others] == [True] * 2 + [False] * 4


def test_a_copy_of_the_holdout_is_found(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send([compressed(placing.basis.test.images[5]), slice_samples[1].images[0]])

    placing(numbers)

    assert near_copies(database) == numbers[:1]


def test_those_that_wait_are_judged_again(
    database: Database, placing: Placing, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send(slice_samples[1].images[:3])
    restate(database, numbers[1:2], state="PENDING", reason="WAITS_FOR_EMBEDDING")

    placing(numbers)

    assert [observation(database, number).stale for number in numbers] == [False, True, False]
