"""Features of users' pictures are those that a run would learn from."""

import numpy as np
from sqlalchemy import select

from services.common.manifest import digest_of
from services.trainer.analyst.embedding import embed_observations
from services.trainer.analyst.encoders import Encoders, OpenedEncoder
from services.trainer.analyst.spaces import FeatureSpace
from services.trainer.analyst.stored import StoredPictures
from services.trainer.data.blobs import Blobs
from services.trainer.data.features import unpack
from services.trainer.data.files import PictureFile
from services.trainer.data.models import Model, create_model
from services.trainer.data.observing import Role
from services.trainer.data.prepared import prepare_pictures
from services.trainer.data.samples import Samples
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.tables import EmbeddingRow, EncoderRow
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import CAT, DOG, MODEL, SPEC, Users, observation, of_class, restate


def embed(database: Database, blobs: Blobs, encoder: OpenedEncoder, numbers: list[int]) -> dict[int, str]:
    return embed_observations(database, StoredPictures(blobs), encoder, numbers)


def test_features_are_of_the_pixels_that_a_run_would_learn(
    database: Database,
    blobs: Blobs,
    encoder: OpenedEncoder,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    settings: TrainerSettings,
) -> None:
    numbers = users.send([np.kron(each, np.ones((2, 3, 1), np.uint8)) for each in slice_samples[1].images[:3]])

    assert embed(database, blobs, encoder, numbers) == {}

    rows = [observation(database, number) for number in numbers]
    files = [PictureFile("", blobs.path(row.content_digest), 0, orientation=row.orientation) for row in rows]
    expected = encoder.embed(prepare_pictures(files, SPEC, settings.data, threads=1).images)
    with database.read() as session:
        found = [session.get_one(EmbeddingRow, (encoder.digest, number)).vector for number in numbers]
    assert [len(each) for each in found] == [2 * encoder.width] * 3
    assert np.allclose(np.stack([unpack(each) for each in found]), expected, rtol=2e-3, atol=1e-3)


def test_a_picture_whose_file_is_gone_is_told_and_does_not_hold_up_the_others(
    database: Database, blobs: Blobs, encoder: OpenedEncoder, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send(slice_samples[1].images[:3])
    blobs.remove(observation(database, numbers[1]).content_digest)

    problems = embed(database, blobs, encoder, numbers)

    assert list(problems) == [numbers[1]]
    assert "the file cannot be read" in problems[numbers[1]]
    with database.read() as session:
        assert list(session.scalars(select(EmbeddingRow.observation))) == [numbers[0], numbers[2]]


def test_what_serves_becomes_the_encoder_once(
    database: Database, settings: TrainerSettings, task: Model, encoder: OpenedEncoder
) -> None:
    again = Encoders(database, settings.runs)
    again.ensure(task, "sha256:" + "0" * 64)  # made on another machine
    found = again.current(task)

    assert found is not None
    with database.read() as session:
        rows = list(session.scalars(select(EncoderRow)))
    assert [(row.digest, row.model, row.run, row.features) for row in rows] == [
        (encoder.digest, MODEL, "starter", encoder.width)
    ]
    assert found.head.weight.shape == (10, encoder.width)


def test_models_that_share_an_encoder_each_have_it(
    database: Database, settings: TrainerSettings, task: Model, encoder: OpenedEncoder
) -> None:
    other = create_model(database, "dogs", task.labels, task.spec.canonical_json())
    encoders = Encoders(database, settings.runs)

    encoders.ensure(other, digest_of((settings.runs / "starter" / "model.onnx").read_bytes()))

    for each in (other, task):
        found = encoders.current(each)
        assert found is not None
        assert found.digest == encoder.digest


def test_an_encoder_whose_run_was_erased_is_made_anew_by_another_run_of_the_same_graph(
    database: Database, settings: TrainerSettings, task: Model, encoder: OpenedEncoder
) -> None:
    graph = settings.runs / "starter"
    graph.rename(settings.runs / "other")
    (settings.runs / "other" / "encoder.onnx").unlink()
    encoders = Encoders(database, settings.runs)
    assert encoders.current(task) is None

    encoders.ensure(task, digest_of((settings.runs / "other" / "model.onnx").read_bytes()))

    found = encoders.current(task)
    assert found is not None
    assert found.digest == encoder.digest


def test_the_space_of_features_follows_the_rows(
    database: Database, blobs: Blobs, encoder: OpenedEncoder, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    space = FeatureSpace(MODEL, encoder.digest, encoder.width)
    numbers = users.send(of_class(slice_samples[1], CAT, 4))
    judge = users.send(of_class(slice_samples[1], DOG, 1), Role.JUDGE)
    embed(database, blobs, encoder, numbers[:3] + judge)
    restate(database, numbers, state="ACCEPTED", label=CAT, changed_number=100)
    with database.read() as session:
        space.refresh(session)

    first = space.select(Role.TRAIN, accepted=True)
    assert first.numbers.tolist() == numbers[:3]
    assert first.labels.tolist() == [CAT] * 3
    assert space.select(Role.JUDGE).labels.tolist() == [-1]

    embed(database, blobs, encoder, numbers[3:])
    restate(database, numbers[:1], state="QUARANTINED", changed_number=101)
    with database.begin() as session:
        for table in (EmbeddingRow, PredictionRow):
            session.query(table).filter(table.observation == numbers[1]).delete()
        session.query(ObservationRow).filter(ObservationRow.number == numbers[1]).delete()
    with database.read() as session:
        space.refresh(session)

    assert space.select(Role.TRAIN, accepted=True).numbers.tolist() == numbers[2:]
    assert space.select(numbers=(numbers[0], numbers[1])).labels.tolist() == [-1]
