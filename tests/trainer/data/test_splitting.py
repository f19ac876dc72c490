import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.data.splitting import choose
from tests.trainer.splits import split


def _numbered(count: int) -> Samples:
    """Samples whose first pixel is their own number, in two classes of unequal size."""
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return Samples(images, np.where(np.arange(count) % 4 == 0, 1, 0).astype(np.int64))


def _numbers(samples: Samples) -> list[int]:
    return [int(number) for number in samples.images[:, 0, 0, 0]]


def test_split_takes_the_fraction_of_each_class() -> None:
    train, validation = split(_numbered(200), 0.2, seed=3)

    assert np.bincount(train.labels).tolist() == [120, 40]
    assert np.bincount(validation.labels).tolist() == [30, 10]


def test_split_parts_are_disjoint_and_complete() -> None:
    train, validation = split(_numbered(200), 0.2, seed=3)

    assert sorted(_numbers(train) + _numbers(validation)) == list(range(200))


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (split(_numbered(200), 0.2, seed)[1] for seed in (3, 3, 4))

    assert _numbers(first) == _numbers(again)
    assert _numbers(first) != _numbers(other)


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples = _numbered(200)

    backwards = split(samples[::-1], 0.2, seed=3)[1]

    assert _numbers(backwards)[::-1] == _numbers(split(samples, 0.2, seed=3)[1])


def test_a_set_that_grows_keeps_its_parts() -> None:
    """Of the 32 samples that are judged on after a quarter was added, hardly one was learnt from before."""
    before, after = (split(_numbered(count), 0.2, seed=3) for count in (120, 160))

    learnt_before, judged_now = set(_numbers(before[0])), set(_numbers(after[1]))

    assert len(judged_now & learnt_before) <= 2
    assert len(judged_now & set(_numbers(before[1]))) >= 22


def test_the_parts_of_the_slice_are_what_they_have_always_been(slice_samples: tuple[Samples, Samples]) -> None:
    """A model of an earlier release must not be judged on what it has learnt."""
    validation = split(slice_samples[0], 0.1, seed=0)[1]
    digest = hashlib.sha256()
    validation.update(digest)

    assert digest.hexdigest() == "e4ef804454a90770593dff1490fc44b1085c1af85ca8bf7aa517ef2fcf3453fa"


def test_split_refuses_a_fraction_that_leaves_a_class_empty() -> None:
    sentence = r"validation_fraction 0\.01 takes 0 of the 15 samples of class 0; .*: change validation_fraction or add"

    with pytest.raises(InvalidInput, match=sentence):
        split(_numbered(20), 0.01, seed=0)


def test_choose_names_the_class_and_the_option() -> None:
    with pytest.raises(InvalidInput, match=r"test_fraction 0\.1 takes 0 of the 3 samples of class 'cat'") as caught:
        choose(np.zeros(3, int), np.arange(3, dtype=np.uint64), 0.1, 0, labels=("cat", "dog"), option="test_fraction")
    assert caught.value.field == "test_fraction"


@given(
    contents=st.lists(st.integers(0, 30), min_size=40, max_size=120),
    fraction=st.floats(0.1, 0.5),
    seed=st.integers(0, 5),
)
def test_equal_contents_are_never_in_both_parts(contents: list[int], fraction: float, seed: int) -> None:
    numbers = np.array(contents, np.uint64)
    classes = (numbers % 2).astype(np.int64)  # equal contents have equal labels

    try:
        chosen = choose(classes, numbers, fraction, seed)
    except InvalidInput:
        return
    assert not set(numbers[chosen]) & set(numbers[~chosen])
    for label in np.unique(classes):
        members = classes == label
        largest = np.unique(numbers[members], return_counts=True)[1].max()
        wanted = round(fraction * members.sum())
        assert wanted <= (chosen & members).sum() < wanted + largest
