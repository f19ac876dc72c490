from collections import Counter

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics.agreement import fuse_votes

Votes = list[tuple[int, int, int]]


def crowd(random: np.random.Generator, truth: np.ndarray, accuracies: list[float], each: int) -> Votes:
    """*each* of the contributors vote for every item; a wrong vote is for any other of five classes."""
    votes = []
    for item, label in enumerate(truth.tolist()):
        for contributor in random.permutation(len(accuracies))[:each].tolist():
            right = random.random() < accuracies[contributor]
            votes.append((item, contributor, label if right else (label + int(random.integers(1, 5))) % 5))
    return votes


def test_spammers_are_found_and_the_others_outweigh_them() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, 300)
    accuracies = [0.2] * 6 + [0.85] * 14
    votes = crowd(random, truth, accuracies, each=5)

    fused = fuse_votes(votes, 5)

    worst = sorted(fused.accuracy, key=lambda contributor: fused.accuracy[contributor])[:6]
    assert sorted(worst) == list(range(6))
    assert max(fused.accuracy[contributor] for contributor in worst) < 0.5
    majority = [Counter(label for at, _, label in votes if at == item).most_common(1)[0][0] for item in range(300)]
    found = np.array([fused.posterior[item].argmax() for item in range(300)])
    assert (found == truth).mean() > (np.array(majority) == truth).mean()


def test_it_is_the_majority_where_all_are_alike() -> None:
    votes = [(7, 1, 0), (7, 2, 0), (7, 3, 1), (8, 1, 2), (8, 2, 1), (8, 3, 1), (9, 1, 2), (9, 2, 0), (9, 3, 2)]

    fused = fuse_votes(votes, 3)

    assert {item: int(each.argmax()) for item, each in fused.posterior.items()} == {7: 0, 8: 1, 9: 2}
    assert all(each.sum() == pytest.approx(1) for each in fused.posterior.values())


def test_posteriors_tell_how_often_they_are_right() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 5, 2000)
    fused = fuse_votes(crowd(random, truth, [0.4, 0.6, 0.7, 0.8, 0.9], each=2), 5)

    sure = np.array([fused.posterior[item].max() for item in range(2000)])
    right = np.array([fused.posterior[item].argmax() == truth[item] for item in range(2000)])

    assert right[sure > 0.9].mean() > 0.95
    assert right.mean() == pytest.approx(sure.mean(), abs=0.06)


def test_one_vote_of_a_stranger_is_worth_what_strangers_are() -> None:
    assert fuse_votes([(1, 1, 3)], 10).posterior[1][3] == pytest.approx(0.8, abs=0.02)


def test_a_trusted_vote_outweighs_three_strangers_and_teaches_who_they_are() -> None:
    votes = [(item, contributor, 1) for item in range(20) for contributor in (1, 2, 3)]
    votes += [(item, 9, 0) for item in range(20)]

    fused = fuse_votes(votes, 2, trusted=[9])

    assert fused.posterior[0].argmax() == 0
    assert fused.accuracy[9] == 0.995
    assert fused.accuracy[1] < 0.5


def test_no_votes_say_nothing() -> None:
    assert fuse_votes([], 3).posterior == {}


@pytest.mark.parametrize(("label", "classes"), [(3, 3), (-1, 3), (0, 1)])
def test_a_vote_for_no_class_is_refused(label: int, classes: int) -> None:
    with pytest.raises(InvalidInput):
        fuse_votes([(0, 0, label)], classes)
