import numpy as np
import pytest
from scipy import stats

from services.common.errors import InvalidInput
from services.trainer.statistics.shift import count_shift, embedding_shift, label_shift, softmax_shift

CLASSES = 10


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def recall(accuracy: float) -> np.ndarray:
    """A classifier that mistakes each class for the next two."""
    eye = np.eye(CLASSES)
    return accuracy * eye + (1 - accuracy) * (0.7 * np.roll(eye, 1, axis=1) + 0.3 * np.roll(eye, 2, axis=1))


def test_a_stated_shift_of_classes_lies_in_its_interval(random: np.random.Generator) -> None:
    shares = np.array([4, 3, 1, 1, 1, 1, 1, 1, 0.5, 0.2])
    shares /= shares.sum()
    covered = []
    for seed in range(40):
        confusion = np.stack([random.multinomial(100, row) for row in recall(0.8)])
        found = label_shift(confusion, random.multinomial(1000, shares @ recall(0.8)), seed=seed)
        assert found is not None
        covered.append((found.low <= shares * CLASSES) & (shares * CLASSES <= found.high))

    assert np.mean(covered) >= 0.9


def test_shares_are_against_those_of_the_holdout() -> None:
    members = np.array([300, 100] + [75] * 8)
    confusion = np.diag(members)

    found = label_shift(confusion, np.full(CLASSES, 100))

    assert found is not None
    assert found.weights == pytest.approx(0.1 / (members / members.sum()))


def test_no_shift_leaves_weights_of_one_within_their_intervals(random: np.random.Generator) -> None:
    confusion = (1000 * recall(0.7)).astype(np.int64)

    found = label_shift(confusion, confusion.sum(axis=0) // 10)

    assert found is not None
    assert found.weights == pytest.approx(np.ones(CLASSES), abs=0.01)
    assert (found.low < 1).all()
    assert (found.high > 1).all()


def test_a_classifier_that_cannot_tell_two_classes_apart_cannot_tell_their_shares() -> None:
    confusion = np.diag([100, 100, 0])
    confusion[2] = confusion[1]

    assert label_shift(confusion, np.array([10, 20, 0])) is None


def test_a_class_without_holdout_samples_is_named() -> None:
    with pytest.raises(InvalidInput, match="class 1 has no sample"):
        label_shift(np.diag([5, 0]), np.array([3, 3]))


@pytest.mark.parametrize("recent", [[50, 60, 40], [90, 30, 30], [400, 10, 5], [50, 50, 50]])
@pytest.mark.parametrize("more", [(), (7,), (7, 80)])
def test_counts_are_tested_as_another_library_does(recent: list[int], more: tuple[int, ...]) -> None:
    reference, recent_counts = np.array([100, 100, 100, *more]), np.array([*recent, *more])
    expected = stats.chi2_contingency(np.stack([reference, recent_counts]), correction=False).pvalue

    assert count_shift(reference, recent_counts) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_class_that_never_occurs_changes_no_test() -> None:
    with_it, without = (count_shift(np.array([9, 9, *none]), np.array([3, 15, *none])) for none in ([0], []))

    assert with_it == pytest.approx(without)
    assert count_shift(np.array([5, 5]), np.array([0, 0])) == 1


@pytest.mark.parametrize("by", [0.1, 0.3, 0.6])
def test_one_shifted_dimension_is_found_with_the_p_value_of_another_library(
    random: np.random.Generator, by: float
) -> None:
    reference, recent = random.normal(size=(400, 3)), random.normal(size=(300, 3))
    recent[:, 1] += by
    expected = stats.ks_2samp(reference[:, 1], recent[:, 1])

    (found,) = [each for each in softmax_shift(reference, recent, 1.0) if each.dimension == 1]

    assert found.distance == pytest.approx(expected.statistic)
    assert np.log(found.p_value) == pytest.approx(np.log(expected.pvalue), rel=0.08, abs=0.05)


def test_quiet_answers_raise_alarms_as_seldom_as_the_level(random: np.random.Generator) -> None:
    looks = [
        bool(softmax_shift(random.dirichlet(np.ones(5), 200), random.dirichlet(np.ones(5), 100), 0.05))
        for _ in range(200)
    ]

    assert np.mean(looks) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_the_surest_dimension_comes_first_and_unchanged_ones_are_missing(random: np.random.Generator) -> None:
    reference, recent = random.normal(size=(500, 4)), random.normal(size=(500, 4))
    recent += [0, 0.5, 0, 1]

    assert [each.dimension for each in softmax_shift(reference, recent, 0.01)] == [3, 1]


def test_answers_that_are_all_alike_have_not_shifted() -> None:
    assert softmax_shift(np.ones((50, 2)), np.ones((30, 2)), 0.05) == []


def test_moved_embeddings_are_found_and_quiet_ones_are_not(random: np.random.Generator) -> None:
    reference = random.normal(size=(1000, 32))
    moved = random.normal(0.35, 1, (500, 32))

    discrepancy, p = embedding_shift(reference, moved, seed=0, permutations=999)
    quiet, quiet_p = embedding_shift(reference[:500], reference[500:], seed=0, permutations=999)

    assert discrepancy > 5 * abs(quiet)
    assert p == pytest.approx(0.001)
    assert quiet_p > 0.05


def test_the_test_of_embeddings_has_its_level_for_few_rows(random: np.random.Generator) -> None:
    p = [
        embedding_shift(random.exponential(size=(12, 3)), random.exponential(size=(20, 3)), seed, 99)[1]
        for seed in range(500)
    ]

    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 2 * np.sqrt(0.09 / 500)


def test_embeddings_that_are_all_alike_have_not_shifted() -> None:
    assert embedding_shift(np.ones((20, 4)), np.ones((20, 4)), 0, 99) == (0.0, 1.0)
    assert embedding_shift(np.ones((1, 4)), np.ones((20, 4)), 0, 99) == (0.0, 1.0)


@pytest.mark.parametrize("recent", [np.ones((0, 3)), np.ones((5, 4))])
def test_rows_that_cannot_be_compared_are_refused(recent: np.ndarray) -> None:
    for compare in (
        lambda: softmax_shift(np.ones((5, 3)), recent, 0.05),
        lambda: embedding_shift(np.ones((5, 3)), recent, 0, 9),
    ):
        with pytest.raises(InvalidInput, match="; give"):
            compare()
