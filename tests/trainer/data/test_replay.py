"""Old samples beside new ones: how many, which, and that no picture is both learnt from and judged on."""

import dataclasses

import pytest

from services.common.errors import Conflict
from services.trainer.data.datasets import Dataset
from services.trainer.data.replay import add_replay
from services.trainer.data.samples import Samples
from tests.trainer.data.test_datasets import contents


@pytest.fixture(scope="module")
def sets(slice_samples: tuple[Samples, Samples], small_dataset: Dataset) -> tuple[Dataset, Dataset]:
    """A new set and an old one that share no picture."""
    train, test = slice_samples

    def part(name: str, at: int) -> Dataset:
        samples = train[at : at + 100], train[at + 100 : at + 120], test[at : at + 50]
        return dataclasses.replace(
            small_dataset, name=name, **dict(zip(("train", "validation", "test"), samples, strict=True))
        )

    return part("new", 0), part("old", 200)


@pytest.mark.parametrize(("per_new", "count"), [(1.0, 100), (0.25, 25), (100.0, 100)])
def test_old_samples_are_drawn_for_each_new_one(sets: tuple[Dataset, Dataset], per_new: float, count: int) -> None:
    new, old = sets

    joined, left_out = add_replay(new, old, per_new, seed=0)

    assert (joined.name, joined.counts) == ("new+old", {"train": 100 + count, "validation": 40, "test": 100})
    assert contents(new.train) <= contents(joined.train) <= contents(new.train) | contents(old.train)
    assert left_out == 0


def test_the_seed_draws(sets: tuple[Dataset, Dataset]) -> None:
    drawn = [add_replay(*sets, per_new=0.5, seed=seed)[0].digest for seed in (0, 0, 1)]

    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_either_set_judges_on_is_not_learnt_from_the_other(sets: tuple[Dataset, Dataset], part: str) -> None:
    new, old = sets
    new = dataclasses.replace(new, train=Samples.joined(new.train, getattr(old, part)[:10]))
    old = dataclasses.replace(old, train=Samples.joined(old.train, getattr(new, part)[:5]))

    joined, left_out = add_replay(new, old, per_new=10.0, seed=0)

    assert left_out == 10
    assert not contents(joined.train) & (contents(joined.validation) | contents(joined.test))
    assert len(joined.train) == 100 + 100


def test_a_set_that_holds_the_old_one_has_nothing_to_replay(sets: tuple[Dataset, Dataset]) -> None:
    new, old = sets
    new = dataclasses.replace(
        new,
        **{part: Samples.joined(getattr(new, part), getattr(old, part)) for part in ("train", "validation", "test")},
    )

    joined, left_out = add_replay(new, old, per_new=1.0, seed=0)

    assert (joined.digest, joined.name, left_out) == (new.digest, "new", 0)


def test_what_one_set_is_tested_on_is_no_validation_sample(sets: tuple[Dataset, Dataset]) -> None:
    new, old = sets
    new = dataclasses.replace(new, validation=Samples.joined(new.validation, old.test[:5]))
    old = dataclasses.replace(old, validation=Samples.joined(old.validation, new.test[:3]))

    joined, _ = add_replay(new, old, per_new=1.0, seed=0)

    assert joined.counts == {"train": 200, "validation": 40, "test": 100}
    assert not contents(joined.validation) & contents(joined.test)


def test_a_set_with_other_labels_is_refused(sets: tuple[Dataset, Dataset]) -> None:
    new, old = sets
    old = dataclasses.replace(old, labels=tuple(reversed(old.labels)))

    with pytest.raises(Conflict, match=r"data set 'new' has other labels or pixels than 'old', .*set replay to 0"):
        add_replay(new, old, per_new=1.0, seed=0)
