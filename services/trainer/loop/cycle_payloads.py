"""What happens in a cycle, each with its ids and figures."""

import math
from typing import Annotated

from pydantic import Field

from services.trainer.loop.payloads import Payload
from services.trainer.loop.policy import Strategy
from services.trainer.loop.values import (
    GateFigures,
    GateOutcome,
    Goal,
    Id,
    Outcome,
    Reason,
    Ruling,
    Tally,
    TrialCounts,
    TrialVerdict,
    Version,
    Wanted,
)

TRAFFIC_CHANGED = "TRAFFIC_CHANGED"
"""Rule of cycles that ended because the traffic was changed outside the loop, which then stays as it is."""
CANDIDATE_GONE = "CANDIDATE_GONE"
"""Rule of cycles whose candidate inference no longer has."""
CHAMPION_GONE = "CHAMPION_GONE"
"""Rule of cycles whose champion inference no longer has, so that the traffic could not be given back to it alone."""
LEFT_ALONE = (TRAFFIC_CHANGED, CHAMPION_GONE)
"""Rules of cycles that end with the traffic as it is."""


class _OncePerCycle(Payload):
    def key(self, cycle: int) -> str | None:
        """Return the kind with the cycle's number."""
        return f"{self.kind}-{cycle}"


class CycleStarted(_OncePerCycle):
    """A cycle begins."""

    kind = "cycle.started"
    reason: Reason
    figures: dict[str, float] = Field(default_factory=dict)
    """That triggered it."""
    accepted: Tally
    goal: Goal = Goal.BETTER
    strategy: Strategy | None = None
    """Where one was asked for."""
    champion: Version
    candidate: Tally = 0
    """Where the cycle begins with a published version."""
    generation: Tally
    """Of the traffic: another one that the loop has not made ends the cycle."""
    policy_digest: str
    wish: int = 0
    deletion: str = ""


class SnapshotMade(_OncePerCycle):
    """The samples are chosen."""

    kind = "snapshot.made"
    digest: Id
    counts: dict[str, int] = Field(default_factory=dict)
    last_sample: Tally


class RunCreated(Payload):
    """A run was asked for."""

    kind = "run.created"
    run_id: Id
    attempt: Tally
    strategy: Strategy
    source: str = ""

    def key(self, cycle: int) -> str | None:
        """Return the attempt's name."""
        return f"{self.kind}-{cycle}-{self.attempt}"


class RunEnded(Payload):
    """A run came to its end."""

    kind = "run.ended"
    run_id: Id
    state: str
    """As the run's row has it: SUCCEEDED, FAILED, CANCELLED."""
    rule: str = ""
    """Why the loop cancelled it; the run's own reason is in its row."""
    metrics: dict[str, float] = Field(default_factory=dict)


class ActionFailed(Payload):
    """Something that was tried cannot succeed, however often it is tried again."""

    kind = "action.failed"
    action: str
    rule: str
    """Reason of the error."""
    strategy: Strategy | None = None
    """Of the run that could not be created."""


class MoveIntended(Payload):
    """The traffic shall change, if nobody else changes it first."""

    wanted: Wanted
    generation: Tally
    """That was seen."""
    authority: int = 0
    """Number of the event that allows it, where one must."""


class PinIntended(MoveIntended):
    """The champion shall be named, so that a newer version does not serve by being the newest."""

    kind = "pin.intended"


class ShadowIntended(MoveIntended):
    """The candidate shall answer beside the champion, unseen."""

    kind = "shadow.intended"


class CanaryIntended(MoveIntended):
    """The candidate shall have a share."""

    kind = "canary.intended"


class PromotionIntended(MoveIntended):
    """The candidate shall serve."""

    kind = "promotion.intended"


class WithdrawalIntended(MoveIntended):
    """The candidate shall have no part any more."""

    kind = "withdrawal.intended"


class RollbackIntended(MoveIntended):
    """An earlier version shall serve again."""

    kind = "rollback.intended"
    taken_back: Tally = 0
    """The version that served when it was intended; 0 in events that were written before they named it."""


class MoveMade(Payload):
    """The traffic is as it was intended."""

    generation: Tally


class Pinned(MoveMade):
    """The champion is named."""

    kind = "pinned"


class ShadowStarted(MoveMade):
    """The candidate answers unseen."""

    kind = "shadow.started"


class CanaryMoved(MoveMade):
    """The candidate has its share."""

    kind = "canary.moved"
    begin: TrialCounts
    """Of inference at that moment: only what comes on top belongs to the trial."""


class Promoted(MoveMade):
    """The candidate serves."""

    kind = "promoted"


class Withdrawn(MoveMade):
    """The candidate has no part any more."""

    kind = "withdrawn"


class RolledBack(MoveMade):
    """The earlier version serves."""

    kind = "rolled_back"


class MoveAbandoned(Payload):
    """Somebody else has changed the traffic meanwhile; it stays as it is."""

    kind = "move.abandoned"
    generation: Tally
    """That was found."""


class PublicationIntended(_OncePerCycle):
    """The run's model shall be published under this id."""

    kind = "publication.intended"
    publication_id: Id
    run_id: Id


class CandidatePublished(_OncePerCycle):
    """The run's model is a version, without traffic."""

    kind = "candidate.published"
    version: Version
    graph_digest: str = ""


class GateBegun(_OncePerCycle):
    """The candidate is judged from here on."""

    kind = "gate.begun"
    candidate_count: Tally
    """Candidates of the model's life that came so far, this one included where it spends of their error."""
    error_share: Annotated[float, Field(gt=0, lt=1)]
    """Chance that this one is promoted without being what it must be."""
    margin: Annotated[float, Field(ge=0, lt=1)]
    """By how much it may be worse, as a share of contents."""

    @property
    def log_e_bound(self) -> float:
        """Evidence that it needs, as a logarithm."""
        return -math.log(self.error_share)


class GateMeasured(Payload):
    """A figure has moved."""

    kind = "gate.measured"
    figures: GateFigures


class GateDecided(_OncePerCycle):
    """The candidate passed, or not."""

    kind = "gate.decided"
    outcome: GateOutcome
    ruling: Ruling


class TrialEnded(Payload):
    """What a part of the traffic has shown."""

    verdict: TrialVerdict
    counts: TrialCounts
    ruling: Ruling = Ruling()


class ShadowEnded(TrialEnded):
    """The shadow has shown enough."""

    kind = "shadow.ended"


class CanaryEnded(TrialEnded):
    """The canary has shown enough."""

    kind = "canary.ended"


class TrialRestarted(Payload):
    """Inference counts from the beginning again."""

    kind = "trial.restarted"
    begin: TrialCounts


class CycleEnded(_OncePerCycle):
    """A cycle is over."""

    kind = "cycle.ended"
    outcome: Outcome
    stage: str
    """In which it was."""
    ruling: Ruling = Ruling()
    wish: int = 0
