"""How the next candidate is made."""

from collections.abc import Collection

from services.trainer.loop.facts import Facts
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.state import LoopState

_MORE_SAMPLES = 2
"""Times as many as a refit had that could not be proved better: then the features themselves must learn."""


def choose_strategy(
    state: LoopState,
    facts: Facts,
    policy: LoopPolicy,
    *,
    wished: Strategy | None = None,
    tried: Collection[Strategy] = (),
) -> Strategy | None:
    """Return the first strategy of the policy that can be used; None where none can.

    Args:
        state: Of the loop.
        facts: About the run to start from, and how long runs take.
        policy: Of the model.
        wished: By hand: this one or none, also where the policy has it not.
        tried: In this cycle, without success.
    """
    usable = [each for each in policy.retrain.strategies if _usable(each, state, facts, policy)]
    if wished is not None:
        return wished if wished not in tried and _usable(wished, state, facts, policy) else None
    if state.unproved and facts.accepted >= _MORE_SAMPLES * state.unproved and Strategy.INCREMENTAL in usable:
        usable.sort(key=lambda each: each == Strategy.REFIT)
    return next((each for each in usable if each not in tried), None)


def _usable(strategy: Strategy, state: LoopState, facts: Facts, policy: LoopPolicy) -> bool:
    if facts.origin is None:
        # Nothing clean is left to start from: a new network needs none, and to forget has no price in seconds.
        tainted = facts.traffic is not None and facts.traffic.champion in state.tainted
        return tainted and strategy == Strategy.SCRATCH and facts.has_base
    if strategy == Strategy.REFIT:
        return facts.origin.has_encoder
    affordable = facts.seconds.get(strategy, float("inf")) <= policy.retrain.budget_seconds
    return affordable and (strategy == Strategy.INCREMENTAL or facts.origin.has_base)
