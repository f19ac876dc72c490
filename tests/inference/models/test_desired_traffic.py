"""Moves from one state of traffic to the next."""

import pytest

from services.common.errors import Conflict, InvalidInput
from services.inference.models.desired_traffic import Traffic

ON_TRIAL = Traffic(4, stable_version=2, previous_version=1, canary_version=3, canary_share=0.1, shadow_version=5)


def test_a_new_stable_version_keeps_the_one_before_as_previous():
    assert Traffic().moved_to(1).moved_to(2) == Traffic(2, stable_version=2, previous_version=1)


def test_a_previous_version_can_be_forgotten():
    forgotten = Traffic(2, stable_version=2, previous_version=1).moved_to(3, forget_previous=True)

    assert forgotten == Traffic(3, stable_version=3, previous_version=0)


def test_a_change_beside_the_stable_version_keeps_the_previous_one():
    moved = Traffic(1, 2, 1).moved_to(2, canary_version=3, canary_share=0.5)

    assert moved == Traffic(2, 2, 1, canary_version=3, canary_share=0.5)


def test_trials_that_are_not_named_again_end():
    assert ON_TRIAL.moved_to(2) == Traffic(5, 2, 1)


@pytest.mark.parametrize(
    ("traffic", "version", "promoted"),
    [
        (ON_TRIAL, 0, Traffic(5, 3, 2)),
        (Traffic(1, 2, shadow_version=5), 0, Traffic(2, 5, 2)),
        (ON_TRIAL, 7, Traffic(5, 7, 2)),
        (Traffic(1, 2), 3, Traffic(2, 3, 2)),
    ],
    ids=["canary", "shadow", "named", "named without a trial"],
)
def test_promoting_makes_what_was_tried_out_stable_and_ends_the_trial(traffic, version, promoted):
    assert traffic.promoted("m", version) == promoted


def test_promoting_needs_something_to_promote():
    with pytest.raises(Conflict, match="has neither canary nor shadow"):
        Traffic(1, 2).promoted("m")


def test_rolling_back_takes_back_a_trial_first_and_then_the_last_change():
    once = ON_TRIAL.rolled_back("m")
    twice = once.rolled_back("m")

    assert once == Traffic(5, 2, 1)
    assert twice == Traffic(6, 1, 2)
    assert twice.rolled_back("m") == Traffic(7, 2, 1)


def test_rolling_back_needs_something_to_go_back_to():
    with pytest.raises(Conflict, match="traffic of model 'm' has had only version 2 in it; set it"):
        Traffic(1, 2).rolled_back("m")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(InvalidInput, match="give 0 to 1"):
        Traffic().moved_to(1, 2, share)


@pytest.mark.parametrize("trial", [{"canary_version": 1}, {"shadow_version": 1}])
def test_a_trial_is_of_another_version_than_the_stable_one(trial):
    with pytest.raises(InvalidInput, match="the stable version itself"):
        Traffic().moved_to(1, **trial)


def test_every_version_with_a_part_is_named():
    assert ON_TRIAL.versions == {1, 2, 3, 5}
    assert Traffic().versions == set()
