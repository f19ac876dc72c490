"""A process that dies at any step leaves a loop that comes to the same end, with every effect once."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from services.trainer.loop.facts import TrafficFact
from services.trainer.loop.payloads import (
    DeletionRequested,
    PromotionWished,
    ProposalWished,
    RejectionWished,
    RollbackWished,
)
from services.trainer.loop.policy import Strategy
from services.trainer.loop.state import Stage
from tests.trainer.loop.world import BAD, EQUAL, Director, World


def a_better_candidate(director: Director) -> None:
    director.run()


def a_worse_candidate(director: Director) -> None:
    director.world.quality = BAD
    director.run()


def no_traffic_was_ever_set(director: Director) -> None:
    director.world.traffic = TrafficFact(0, 0, ready=(1,))
    director.run()


def runs_that_fail(director: Director) -> None:
    director.world.failing = frozenset({Strategy.REFIT, Strategy.INCREMENTAL})
    director.run()


def a_canary_that_fails(director: Director) -> None:
    director.until(Stage.CANARY)
    director.world.failing_requests = 0.2
    director.run()


def a_hand_that_rejects_a_run(director: Director) -> None:
    director.until_event(lambda state: state.cycle is not None and bool(state.cycle.running))
    director.append(RejectionWished(request_id="a"))
    director.run()


def a_proposal_that_is_promoted_by_hand_and_taken_back(director: Director) -> None:
    director.world.accepted = director.world.newest_sample = 0
    director.world.traffic = TrafficFact(7, 2, ready=(1, 2, 3))
    director.world.quality = EQUAL
    director.append(ProposalWished(request_id="a", version=3))
    director.until(Stage.GATE)
    director.append(PromotionWished(request_id="b", version=3))
    director.run()
    director.append(RollbackWished(request_id="c"))
    director.run()


def a_deletion_that_taints_the_champion(director: Director) -> None:
    director.world.accepted = director.world.newest_sample = 0
    director.world.tainted = (1,)
    deadline = director.world.now + timedelta(hours=72)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.run()


def a_deletion_beside_a_trial(director: Director) -> None:
    director.until(Stage.CANARY)
    deadline = director.world.now + timedelta(hours=72)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.run()


SCENARIOS: dict[Callable[[Director], None], str] = {
    a_better_candidate: "PROMOTED",
    a_worse_candidate: "REFUSED",
    no_traffic_was_ever_set: "PROMOTED",
    runs_that_fail: "PROMOTED",
    a_canary_that_fails: "REFUSED",
    a_hand_that_rejects_a_run: "REFUSED",
    a_proposal_that_is_promoted_by_hand_and_taken_back: "PROMOTED",
    a_deletion_that_taints_the_champion: "PROMOTED",
    a_deletion_beside_a_trial: "PROMOTED",
}


def played(scenario: Callable[[Director], None], deaths: dict[int, str]) -> Director:
    director = Director(World(), deaths=deaths)
    scenario(director)
    return director


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_death_before_or_after_any_effect_changes_nothing(scenario: Callable[[Director], None]) -> None:
    undisturbed = played(scenario, {})

    assert undisturbed.state.last_cycle is not None
    assert undisturbed.state.last_cycle.outcome == SCENARIOS[scenario]
    for action in range(1, undisturbed.actions + 1):
        for moment in ("before", "after"):
            director = played(scenario, {action: moment})
            assert director.log == undisturbed.log, f"death {moment} action {action}"
            assert director.world.traffic == undisturbed.world.traffic
            assert director.world.effects == undisturbed.world.effects
    assert len(set(undisturbed.world.effects)) == len(undisturbed.world.effects)


def test_a_process_that_dies_at_every_other_step_comes_to_the_same_end() -> None:
    undisturbed = played(a_better_candidate, {})
    deaths = {action: ("before", "after")[action % 4 // 2] for action in range(1, 3 * undisturbed.actions, 2)}

    director = played(a_better_candidate, deaths)

    assert director.log == undisturbed.log
    assert director.world.effects == undisturbed.world.effects
