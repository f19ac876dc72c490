"""Snapshots: what they pin, that they forget what was never to be seen, and the data set that they are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import delete, select, update

from services.common.errors import Conflict, InvalidInput, NotFound, NotReady
from services.common.manifest import PreprocessSpec
from services.trainer.data.choosing import Base, Caps
from services.trainer.data.collecting import collect
from services.trainer.data.datasets import Dataset, load_dataset, load_with_originals
from services.trainer.data.imported import NewSample, SampleImport
from services.trainer.data.models import Model, create_model, find_model
from services.trainer.data.observing import NEAR_COPY, Role
from services.trainer.data.pinned import describe_base, load_base
from services.trainer.data.snapshots import Snapshot, make_snapshot, read_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.data.tables import FindingRow, ObservationRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.options import TrainingOptions
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded, write_classes

SPEC = PreprocessSpec(input="image", width=8, height=8)
UNLIMITED = Caps(1.0, 1)
BASE = Base("somewhere", "sha256:" + "0" * 64, np.repeat([0, 1], 50))


def pictures(numbers: range, side: int = 8) -> list[bytes]:
    """Return small files; each number has pixels of its own."""
    return [
        encoded(Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)))
        for number in numbers
    ]


def give(database: Database, blobs: Path, images: list[bytes], label: str, contributor: str = "") -> None:
    with SampleImport(database, blobs, "pets", contributor) as taking:
        taking.add([NewSample(image, label) for image in images])
        assert taking.counts.accepted == len(images)


def make(database: Database, base: Base | None = BASE, caps: Caps = UNLIMITED, **changes: object) -> Snapshot:
    with database.begin(alone=True) as session:
        return make_snapshot(session, "pets", base, caps=caps, **({"base_per_new": 1.0} | changes))  # type: ignore[arg-type]


def distrust(database: Database) -> None:
    with database.begin() as session:
        session.execute(update(VoteRow).values(trusted=False))


@pytest.fixture
def filled(database: Database, sources: DataSources) -> Database:
    """A database with 12 cats of ann and 15 dogs of the owner."""
    create_model(database, "pets", ["cat", "dog"], SPEC.canonical_json())
    give(database, sources.blobs, pictures(range(12)), "cat", "ann")
    give(database, sources.blobs, pictures(range(12, 27)), "dog")
    return database


def test_a_snapshot_pins_what_is_accepted_now(filled: Database, sources: DataSources) -> None:
    made = make(filled)
    give(filled, sources.blobs, pictures(range(100, 103)), "cat")

    pinned = read_snapshot(filled, made.digest)

    parts = [each.part for each in pinned.pictures]
    assert (pinned.model, pinned.base, pinned.base_digest) == ("pets", BASE.name, BASE.digest)
    assert made.newest == 27 == len(pinned.pictures)
    assert {each.sample for each in pinned.pictures} == set(range(1, 28))
    assert len(pinned.base_drawn) == made.counts["replayed"] == parts.count("train")
    assert made.counts["train"] == parts.count("train") * 2
    assert made.counts["validation"] == parts.count("validation") >= 2
    assert make(filled).digest != made.digest


def test_made_again_it_is_the_same_and_has_the_same_rows(filled: Database) -> None:
    assert make(filled) == make(filled)
    with filled.read() as session:
        assert len(list(session.scalars(select(SnapshotSampleRow)))) == 27


def test_left_out_is_as_never_seen(filled: Database, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    other.migrate()
    create_model(other, "pets", ["cat", "dog"], SPEC.canonical_json())
    give(other, tmp_path / "blobs", pictures(range(26, 11, -1)), "dog")  # the other way round
    give(other, tmp_path / "blobs", pictures(range(3, 12)), "cat", "bob")

    without = make(filled, without=[1, 2, 3])

    seen = make(other)
    other.close()
    assert (without.digest, without.counts) == (seen.digest, seen.counts)
    assert without.digest != make(filled).digest


def test_what_candidates_are_judged_on_is_not_learnt(filled: Database) -> None:
    with filled.begin() as session:
        session.execute(update(ObservationRow).where(ObservationRow.number <= 5).values(role=Role.JUDGE))

    made = make(filled)

    assert {each.sample for each in read_snapshot(filled, made.digest).pictures} == set(range(6, 28))


def test_what_is_nearly_judged_on_is_not_learnt_whoever_labelled_it(filled: Database) -> None:
    with filled.begin() as session:
        for number, kind in ((1, NEAR_COPY), (13, NEAR_COPY), (2, "LIKELY_WRONG")):
            session.add(FindingRow(observation=number, kind=kind, level=1.0, detail="", time=""))

    made = make(filled)

    assert {each.sample for each in read_snapshot(filled, made.digest).pictures} == {*range(2, 13), *range(14, 28)}
    assert made.digest == make(filled, without=[1, 13]).digest


def test_who_is_not_trusted_is_held_to_the_caps(filled: Database) -> None:
    assert make(filled, caps=Caps(0.0, 5)).counts["validation"] >= 2
    distrust(filled)

    made = make(filled, caps=Caps(0.0, 5))

    labels = [each.label for each in read_snapshot(filled, made.digest).pictures]
    assert (labels.count(0), labels.count(1)) == (5, 5)


def test_without_samples_the_base_is_learnt_whole_or_nothing_is(database: Database) -> None:
    create_model(database, "pets", ["cat", "dog"], SPEC.canonical_json())

    assert make(database).counts == {"train": 100, "validation": 0, "replayed": 100}
    with pytest.raises(InvalidInput, match="model 'pets' has no accepted samples to learn from and no base set"):
        make(database, None)
    with pytest.raises(NotFound, match="model 'birds' is unknown"), database.begin(alone=True) as session:
        make_snapshot(session, "birds", None, caps=UNLIMITED, base_per_new=1.0)


def test_a_snapshot_whose_pictures_were_deleted_is_refused_until_they_come_again(
    filled: Database, sources: DataSources
) -> None:
    made = make(filled)
    with filled.begin() as session:
        session.execute(delete(SnapshotSampleRow).where(SnapshotSampleRow.observation == 1))
        session.execute(delete(VoteRow).where(VoteRow.observation == 1))
        session.execute(delete(SampleRow).where(SampleRow.observation == 1))
        session.execute(delete(ObservationRow).where(ObservationRow.number == 1))

    with pytest.raises(Conflict, match="was made of 27 pictures of users and has 26 of them"):
        read_snapshot(filled, made.digest)
    give(filled, sources.blobs, pictures(range(1)), "cat")
    assert make(filled).digest == made.digest
    assert len(read_snapshot(filled, made.digest).pictures) == 27


def test_a_snapshot_that_nobody_made_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match="there is no snapshot 'aa'"):
        read_snapshot(database, "aa")


Make = Callable[..., TrainingOptions]


@pytest.fixture
def task(filled: Database) -> Model:
    return find_model(filled, "pets")


@pytest.fixture
def base(task: Model, sources: DataSources, root: Path) -> Dataset:
    write_classes(root / "base", {"cat": 40, "dog": 40})
    return load_base(str(root / "base"), task, sources)


def test_a_snapshot_is_a_data_set(filled: Database, sources: DataSources, base: Dataset, options: Make) -> None:
    made = make(filled, describe_base(base), base_per_new=2.0)

    dataset = load_dataset(options(f"snapshot:{made.digest}"), sources)

    assert dataset.name == f"snapshot:{made.digest}"
    assert (dataset.labels, dataset.spec) == (("cat", "dog"), SPEC)
    assert len(dataset.train) == made.counts["train"]
    assert len(dataset.validation) == made.counts["validation"] + len(base.validation)
    assert np.array_equal(dataset.test.images, base.test.images)
    drawn = list(read_snapshot(filled, made.digest).base_drawn)
    assert np.array_equal(dataset.train.images[: len(drawn)], base.train.images[drawn])
    assert np.array_equal(dataset.validation.images[: len(base.validation)], base.validation.images)


def test_the_samples_of_a_snapshot_have_the_pictures_of_its_base_and_of_users(
    filled: Database, sources: DataSources, base: Dataset, options: Make
) -> None:
    made = make(filled, describe_base(base))
    spec = SPEC.model_copy(update={"datatype": "FP32"})  # the same pixels, made of the pictures once more

    dataset, originals = load_with_originals(options(f"snapshot:{made.digest}", clean=True), sources)

    for part in ("train", "validation", "test"):
        images = getattr(dataset, part).images
        assert all(originals[part].file(row) for row in range(len(images)))
        assert np.array_equal(originals[part].pixels(slice(None), spec), images)


def test_without_a_base_the_test_part_is_drawn(filled: Database, sources: DataSources, options: Make) -> None:
    made = make(filled, None)

    dataset = load_dataset(options(f"snapshot:{made.digest}"), sources)

    assert sum(dataset.counts.values()) == 27
    assert len(dataset.validation) == made.counts["validation"]


def test_pictures_that_contradict_leak_or_are_gone_are_left_out(
    filled: Database, sources: DataSources, base: Dataset, options: Make
) -> None:
    leak = [encoded(Image.fromarray(image)) for image in base.test.images[:2]]
    other = [encoded(Image.fromarray(image)) for image in base.train.images[base.train.labels == 0][:3]]
    for image, label in zip(leak, base.test.labels[:2], strict=True):
        give(filled, sources.blobs, [image], base.labels[label])
    give(filled, sources.blobs, other, "dog", "mallory")
    made = make(filled, describe_base(base), base_per_new=100.0)  # all of the base
    gone = read_snapshot(filled, made.digest).pictures[0].content_digest
    next(sources.blobs.rglob(gone)).unlink()

    collection = collect(options(f"snapshot:{made.digest}"), sources)

    assert len(collection) == len(base.train) + len(base.validation) + len(base.test) + 27 + 5 - 6
    assert not collection.unreadable
    dataset = load_dataset(options(f"snapshot:{made.digest}"), sources)
    assert dataset.counts["test"] == len(base.test)


def test_a_base_that_has_changed_is_refused(
    filled: Database, sources: DataSources, base: Dataset, options: Make
) -> None:
    changed = dataclasses.replace(describe_base(base), digest="sha256:" + "1" * 64)
    made = make(filled, changed)

    with pytest.raises(Conflict, match=r"was made beside .*base' with digest sha256:1111"):
        load_dataset(options(f"snapshot:{made.digest}"), sources)


def test_a_base_of_other_labels_is_refused(task: Model, sources: DataSources, root: Path) -> None:
    write_classes(root / "birds", {"owl": 20, "tit": 20})

    with pytest.raises(Conflict, match=r"has 2 labels, owl, tit, .* model 'pets' has cat, dog"):
        load_base(str(root / "birds"), task, sources)


def test_a_snapshot_is_no_base(filled: Database, task: Model, sources: DataSources) -> None:
    with pytest.raises(Conflict, match="is a snapshot, which holds pictures of users that may have to be forgotten"):
        load_base(f"snapshot:{make(filled).digest}", task, sources)


def test_a_snapshot_needs_the_database(sources: DataSources, options: Make) -> None:
    with pytest.raises(NotReady, match="set TRAINER_DATABASE"):
        load_dataset(options("snapshot:" + "0" * 64), dataclasses.replace(sources, database=None))
    with pytest.raises(InvalidInput, match="dataset 'snapshot:1' names no snapshot; write snapshot: and its digest"):
        load_dataset(options("snapshot:1"), sources)
