"""Which versions may become stable, and which one to go back to."""

from services.trainer.loop.facts import TrafficFact
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.state import Deletion, LoopState


def unfit(version: int, state: LoopState, traffic: TrafficFact) -> str:
    """Return why *version* cannot become stable, as a stable word; empty where it can."""
    if version in state.tainted:
        return "TAINTED"
    if version == traffic.champion:
        return "STABLE_ALREADY"
    return "" if version in traffic.ready else "NOT_READY"


def version_before(state: LoopState, traffic: TrafficFact) -> int:
    """Return the version to go back to: the one before or, where it will not do, the newest that is older; 0 for none.

    One that was gone back from will not do: who asks twice goes back twice and never forth.
    """
    older = [each for each in reversed(traffic.ready) if each < traffic.champion]
    steps = (each for each in (traffic.previous, *older) if each and each not in state.taken_back)
    return next((each for each in steps if not unfit(each, state, traffic)), 0)


def clean_version(state: LoopState, traffic: TrafficFact) -> int:
    """Return the version to go to where any will do that is fit: the one before or else the newest; 0 for none.

    One that was gone back from is taken last.
    """
    fit = [each for each in traffic.ready if not unfit(each, state, traffic)]
    newest = max(fit, key=lambda each: (each not in state.taken_back, each), default=0)
    return version_before(state, traffic) or newest


def goes_back(deletion: Deletion, state: LoopState, traffic: TrafficFact, policy: LoopPolicy) -> bool:
    """Whether an earlier version takes the place of the tainted one once the deadline has passed."""
    wanted = policy.deletion.at_deadline == "previous" and not deletion.no_way_back
    return wanted and version_before(state, traffic) != 0
