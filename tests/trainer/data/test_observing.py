"""What importing and feedback have in common: one row for each content, one last word of each contributor."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select, update

from services.common.errors import InvalidInput
from services.common.manifest import PreprocessSpec
from services.trainer.data.blobs import Blobs
from services.trainer.data.datasets import load_dataset
from services.trainer.data.imported import NewSample, SampleImport, count_judging, list_samples
from services.trainer.data.models import Model, create_model
from services.trainer.data.observing import (
    Content,
    Role,
    State,
    VoteKind,
    Word,
    mark_changed,
    observe,
    store_picture,
    vote,
)
from services.trainer.data.sources import DataSources
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow
from services.trainer.options import TrainingOptions
from services.trainer.sets import ModelSamples
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded
from tests.trainer.data.test_imported import noise
from tests.trainer.data.test_metadata import PHOTO, jpeg


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def model(database: Database) -> Model:
    return create_model(
        database, "pets", ["cat", "dog"], PreprocessSpec(input="image", width=16, height=16).canonical_json()
    )


def by_first_digit(pixel_digest: str) -> Role:
    return Role.JUDGE if pixel_digest[0] < "8" else Role.TRAIN


def seen(database: Database, contents: list[Content]) -> list[ObservationRow]:
    with database.begin(alone=True) as session:
        rows = observe(session, "pets", contents, by_first_digit)
        return [rows[each.pixel_digest] for each in contents]


def rows(database: Database) -> list[ObservationRow]:
    with database.read() as session:
        return list(session.scalars(select(ObservationRow).order_by(ObservationRow.number)))


def test_a_stored_picture_has_no_metadata(blobs: Blobs) -> None:
    content = store_picture(blobs, jpeg())

    stored = blobs.path(content.content_digest).read_bytes()
    assert b"Jane" not in stored
    assert (content.format, content.orientation, content.size_bytes) == ("JPEG", 6, len(stored))


def test_a_content_is_one_row_whatever_file_it_comes_in(database: Database, blobs: Blobs, model: Model) -> None:
    contents = [store_picture(blobs, encoded(PHOTO, name)) for name in ("PNG", "BMP", "TIFF")]
    other = store_picture(blobs, noise(1)[0])

    first = seen(database, [contents[0], other, contents[1]])
    again = seen(database, [contents[2]])

    assert [each.number for each in first] == [1, 2, 1]
    assert again[0].number == 1
    assert [each.changed_number for each in rows(database)] == [1, 2]
    assert {each.role for each in rows(database) if each.number == 1} == {by_first_digit(contents[0].pixel_digest)}


def test_the_last_word_of_a_contributor_counts_and_the_same_again_changes_nothing(
    database: Database, blobs: Blobs, model: Model
) -> None:
    picture = seen(database, [store_picture(blobs, noise(1)[0])])[0]
    words = [
        Word("ann", VoteKind.LABEL, label=0),
        Word("ann", VoteKind.LABEL, label=0),
        Word("ann", VoteKind.PROPOSAL, proposal="cow"),
        Word("ben", VoteKind.WRONG, comment="no"),
    ]
    news = []
    for word in words:
        with database.begin(alone=True) as session:
            news.append(vote(session, session.get_one(ObservationRow, picture.number), word))

    with database.read() as session:
        kept = [(each.contributor, each.verdict, each.proposal) for each in session.scalars(select(VoteRow))]
    assert news == [True, False, True, True]
    assert kept == [("ann", "PROPOSAL", "cow"), ("ben", "WRONG", "")]
    assert (rows(database)[0].changed_number, rows(database)[0].stale) == (4, True)


def test_changes_are_numbered_over_all_pictures(database: Database, blobs: Blobs, model: Model) -> None:
    seen(database, [store_picture(blobs, each) for each in noise(3)])

    with database.begin(alone=True) as session:
        mark_changed(session, [3, 1])

    assert [(each.changed_number, each.stale) for each in rows(database)] == [(4, True), (2, False), (5, True)]


def test_an_imported_sample_is_a_picture_with_a_vote(database: Database, blobs: Blobs, model: Model) -> None:
    with SampleImport(database, blobs.folder, "pets", "ann") as taking:
        taking.add([NewSample(image, label) for image, label in zip(noise(3), ["cat", "dog", "cat"], strict=True)])

    samples = list_samples(database, "pets")[0]
    with database.read() as session:
        words = [(each.contributor, each.label, each.trusted) for each in session.scalars(select(VoteRow))]
    assert [(each.contributor, each.observation) for each in samples] == [("ann", 1), ("ann", 2), ("ann", 3)]
    assert [(each.state, each.sample, each.label, each.role) for each in rows(database)] == [
        (State.ACCEPTED, sample.number, label, Role.TRAIN) for sample, label in zip(samples, [0, 1, 0], strict=True)
    ]
    assert words == [("ann", 0, True), ("ann", 1, True), ("ann", 0, True)]


def test_a_picture_that_judges_stays_one_when_it_is_imported_and_is_not_learnt(
    database: Database, sources: DataSources, model: Model, options: Callable[..., TrainingOptions]
) -> None:
    images = noise(40)
    store = Blobs(sources.blobs)
    captured = seen(database, [store_picture(store, each) for each in images])
    judging = [each.number for each in captured if each.role == Role.JUDGE]
    assert 5 < len(judging) < 35

    with SampleImport(database, sources.blobs, "pets") as taking:
        taking.add([NewSample(image, ("cat", "dog")[row % 2]) for row, image in enumerate(images)])
    dataset = load_dataset(options("model:pets"), sources)

    assert taking.counts.accepted == 40
    assert [each.role for each in rows(database)] == [each.role for each in captured]
    assert {each.state for each in rows(database)} == {State.ACCEPTED}
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 40 - len(judging)
    assert count_judging(database, ModelSamples("pets")) == len(judging)


def test_an_import_of_who_is_not_trusted_decides_nothing(database: Database, blobs: Blobs, model: Model) -> None:
    images = noise(40)
    captured = seen(database, [store_picture(blobs, each) for each in images[:30]])
    assert {each.role for each in captured} == {Role.TRAIN, Role.JUDGE}

    with SampleImport(database, blobs.folder, "pets", "eve", lambda _: False) as taking:
        taking.add([NewSample(image, "dog") for image in images])

    samples = list_samples(database, "pets")[0]
    with database.read() as session:
        words = list(session.scalars(select(VoteRow)))
    assert (taking.counts.accepted, taking.counts.duplicates, taking.counts.rejected) == (10, 30, 0)
    assert [each.observation for each in samples] == list(range(31, 41))
    assert {(each.contributor, each.label, each.trusted) for each in words} == {("eve", 1, False)}
    assert len(words) == 40
    assert [(each.state, each.sample, each.stale) for each in rows(database)[:30]] == [
        (State.CAPTURED, None, True)
    ] * 30


def test_an_import_is_worth_what_the_contributor_is_when_it_is_written(
    database: Database, blobs: Blobs, model: Model
) -> None:
    trusted = [True]
    with SampleImport(database, blobs.folder, "pets", "eve", lambda _: trusted[0]) as taking:
        for image in noise(2):
            taking.add([NewSample(image, "dog")])
            trusted[0] = False

    with database.read() as session:
        assert list(session.scalars(select(VoteRow.trusted).order_by(VoteRow.number))) == [True, False]


def test_a_set_of_samples_that_all_judge_is_refused(
    database: Database, sources: DataSources, model: Model, options: Callable[..., TrainingOptions]
) -> None:
    with SampleImport(database, sources.blobs, "pets") as taking:
        taking.add([NewSample(image, "cat") for image in noise(3)])
    with database.begin() as session:
        session.execute(update(ObservationRow).values(role=Role.JUDGE))

    with pytest.raises(InvalidInput, match="has such a number, but for 3 that candidates are judged on; name others"):
        load_dataset(options("model:pets"), sources)


def test_a_sample_of_an_earlier_release_becomes_a_picture_that_was_learnt(
    database: Database, blobs: Blobs, model: Model
) -> None:
    contents = [store_picture(blobs, each) for each in noise(20)]
    with SampleImport(database, blobs.folder, "pets") as taking:
        taking.add([NewSample(image, "dog") for image in noise(20)])
    with database.begin() as session:  # as it was before there were observations
        session.execute(update(SampleRow).values(observation=None))
        session.query(VoteRow).delete()
        session.query(ObservationRow).delete()

    found = seen(database, contents)

    samples = list_samples(database, "pets")[0]
    assert any(by_first_digit(each.pixel_digest) is Role.JUDGE for each in contents)
    assert {(each.role, each.state, each.label) for each in found} == {(Role.TRAIN, State.ACCEPTED, 1)}
    assert [each.observation for each in samples] == [each.number for each in found]
    with database.read() as session:
        assert {(each.contributor, each.label, each.trusted) for each in session.scalars(select(VoteRow))} == {
            ("", 1, True)
        }


def test_a_file_that_was_removed_meanwhile_is_stored_again(
    database: Database, blobs: Blobs, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = encoded(Image.new("RGB", (5, 5), "red"))
    with SampleImport(database, blobs.folder, "pets") as taking:
        insert = taking._insert

        def removing(taken: dict) -> dict:
            for each in taken.values():
                blobs.remove(each.content.content_digest)
            return insert(taken)

        monkeypatch.setattr(taking, "_insert", removing)
        taking.add([NewSample(image, "cat")])

    assert blobs.has(list_samples(database, "pets")[0][0].content_digest)
