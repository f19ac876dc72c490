"""What a picture is, by votes, reviews and neighbours."""

import pytest

from services.trainer.data.observing import VoteKind
from services.trainer.feedback.evidence import TOGETHER, Lessons, Reviewed, label_posterior, learn
from services.trainer.feedback.trust import Support, VoteFact
from services.trainer.statistics.agreement import fuse_votes

CAT_BESIDE = {"cat": Support.MOST, "dog": Support.NONE, "cow": Support.NONE}


def says(label: str, name: str, trusted: bool = False) -> VoteFact:
    return VoteFact(name, VoteKind.LABEL, label, trusted)


def test_it_is_what_fused_votes_come_to_for_the_same_accuracies() -> None:
    votes = [(0, 0, 2), (0, 1, 2), (0, 2, 1), (1, 0, 3), (1, 2, 3), (2, 1, 0)]
    fused = fuse_votes(votes, 5)
    accuracy = {str(number): value for number, value in fused.accuracy.items()}

    for item in range(3):
        said = [says(str(label), str(name)) for at, name, label in votes if at == item]
        found = label_posterior(said, "", accuracy, 5)
        assert found == pytest.approx({label: fused.posterior[item][int(label)] for label in found}, abs=1e-3)


def test_a_stranger_is_as_likely_right_as_strangers_are() -> None:
    assert label_posterior([says("dog", "ann")], "", {}, 10) == pytest.approx({"dog": 0.8})


def test_a_word_against_the_answer_speaks_against_its_label_alone() -> None:
    wrong = VoteFact("ben", VoteKind.WRONG)
    for_answer = label_posterior([says("cat", "ann"), wrong], "cat", {}, 3)
    for_other = label_posterior([says("dog", "ann"), wrong], "cat", {}, 3)

    assert for_answer["cat"] < 0.8 < for_other["dog"]
    assert label_posterior([wrong], "cat", {}, 3) == {}


def test_labels_that_the_model_does_not_know_are_weighed_like_others() -> None:
    found = label_posterior([says("yak", "ann"), says("yak", "ben"), says("dog", "cid")], "cat", {}, 2)

    assert found["yak"] > 0.8 > found["dog"] > 0


def test_reviewers_weigh_most_and_the_blocked_nothing() -> None:
    crowd = [says("cow", "ann"), says("dog", "rex", trusted=True)]

    assert label_posterior(crowd, "", {"ann": 0.9}, 3)["dog"] > 0.9
    assert label_posterior([VoteFact("x", VoteKind.LABEL, "cow", True, True), crowd[1]], "", {}, 3).keys() == {"dog"}


def crowd(*names: str, label: str = "dog") -> list[VoteFact]:
    return [says(label, name) for name in names]


def test_voices_that_agree_count_no_more_than_one_that_hardly_errs() -> None:
    sure = dict.fromkeys("abcdef", 0.99)

    many = label_posterior(crowd(*"abcdef"), "", sure, 10)["dog"]

    assert many == pytest.approx(0.99**6 / (0.99**6 + TOGETHER), rel=1e-3)
    assert label_posterior([*crowd(*"abcdef"), says("cat", "rex", trusted=True)], "", sure, 10)["dog"] < 0.6


def test_voices_that_reviewers_found_wrong_together_no_longer_suffice() -> None:
    reviewed = [Reviewed("cat", (("a", "dog"), ("b", "dog")), {})] * 3 + [Reviewed("cat", (("c", "cat"),), {})] * 3
    accuracy = dict.fromkeys("abc", 0.96)

    lessons = learn(reviewed, accuracy, 10)
    found = [
        label_posterior(crowd("a", "b", label=label), "", accuracy, 10, {}, lessons)[label] for label in ("dog", "cow")
    ]

    assert lessons.together[("cat", "dog")] == pytest.approx(3 / 8, rel=0.01)
    assert found[0] < 0.8 < 0.98 < found[1]
    assert learn(reviewed, dict.fromkeys("ab", 0.3), 10).together == {}  # each of them is known to lie


def test_neighbours_are_one_more_voice() -> None:
    alone = crowd("ann")

    assert label_posterior(alone, "", {}, 3, CAT_BESIDE)["dog"] < 0.4
    assert label_posterior(crowd("ann", label="cat"), "", {}, 3, CAT_BESIDE)["cat"] > 0.99
    assert label_posterior(alone, "", {}, 3, {}) == pytest.approx({"dog": 0.8})
    assert label_posterior(crowd("ann", "ben", "cid"), "", {}, 3, CAT_BESIDE)["dog"] > 0.9  # three outweigh them


def test_neighbours_that_reviewers_found_wrong_no_longer_hold_up_who_is_right() -> None:
    reviewed = [Reviewed(label, (), CAT_BESIDE) for label in ("dog", "cow", "cat") * 20]

    lessons = learn(reviewed, {}, 3)

    assert lessons.right[Support.NONE] > 0.5
    assert label_posterior(crowd("ann", "ben"), "", {}, 3, CAT_BESIDE)["dog"] < 0.8
    assert label_posterior(crowd("ann", "ben"), "", {}, 3, CAT_BESIDE, lessons)["dog"] > 0.9


def test_without_reviews_nothing_is_learnt() -> None:
    lessons, none = learn([], {}, 10), Lessons()

    assert lessons.together == none.together
    assert lessons.right == pytest.approx(none.right)
    assert lessons.wrong == pytest.approx(none.wrong)
