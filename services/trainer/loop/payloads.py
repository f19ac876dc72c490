"""What is asked of the loop, what becomes of that, and what it sees around it; each with its ids and figures."""

from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field

from services.trainer.loop.policy import Strategy
from services.trainer.loop.values import Figures, Goal, Id, Tally, Version


class Payload(Figures):
    """What an event says. Subclasses name their kind."""

    kind: ClassVar[str]

    def key(self, cycle: int) -> str | None:
        """Return what keeps the event from being written twice; None where its number alone does."""
        return None


class Wish(Payload):
    """Something asked for by hand."""

    request_id: Id
    reason: Annotated[str, Field(max_length=200)] = ""
    """As the operator gave it."""
    by_hash: str = ""
    """Pseudonym of who asked; empty for nobody who is known."""

    def key(self, cycle: int) -> str | None:
        """Return the request's id: asked again, it is the same wish."""
        return f"wish-{self.request_id}"


class TriggerWished(Wish):
    """A cycle shall begin."""

    kind = "wish.trigger"
    strategy: Strategy | None = None


class ProposalWished(Wish):
    """A published version shall be judged."""

    kind = "wish.propose"
    version: Version
    goal: Goal = Goal.BETTER


class PromotionWished(Wish):
    """A version shall serve, past gate and trial."""

    kind = "wish.promote"
    version: Version


class RejectionWished(Wish):
    """The candidate shall go; 0 names the one of the cycle under way, whatever it is."""

    kind = "wish.reject"
    version: Tally = 0


class RollbackWished(Wish):
    """The version before shall serve again."""

    kind = "wish.rollback"


class WishDeclined(Payload):
    """A wish does not fit what is the case."""

    kind = "wish.declined"
    wish: int
    rule: str


class AlarmRaised(Payload):
    """A detector has found drift."""

    kind = "alarm.raised"
    alarm: Annotated[int, Field(ge=1)]
    """Number of the alarm among those of its detector."""
    detector: str
    level: float
    threshold: float

    def key(self, cycle: int) -> str | None:
        """Return the alarm's name."""
        return f"alarm-{self.detector}-{self.alarm}"


class TrafficChanged(Payload):
    """Which versions answer was changed, and no event of the loop tells of it. A version 0 means none.

    Somebody may have done it, or a first version was published, or a step that is tried again has done it before.
    """

    kind = "traffic.changed"
    generation: Tally
    """That was found; the state of the loop has the one before, so that no change is written twice."""
    stable: Tally
    """0 means the newest version that is ready."""
    previous: Tally = 0
    """That was stable before."""
    canary: Tally = 0
    canary_share: float = 0.0
    shadow: Tally = 0


class CapturePaused(Payload):
    """No predictions are kept."""

    kind = "capture.paused"
    reason: Id


class CaptureResumed(Payload):
    """Predictions are kept again."""

    kind = "capture.resumed"


class DeletionRequested(Payload):
    """Something must be forgotten."""

    kind = "deletion.requested"
    deletion_id: Id
    subject_digest: str
    deadline: AwareDatetime

    def key(self, cycle: int) -> str | None:
        """Return the deletion's id: asked again, it is the same one."""
        return f"deletion-{self.deletion_id}"


class OfDeletion(Payload):
    """A step of a deletion."""

    deletion_id: Id

    def key(self, cycle: int) -> str | None:
        """Return the kind with the deletion's id."""
        return f"{self.kind}-{self.deletion_id}"


class DeletionErased(OfDeletion):
    """Rows and pictures are gone; versions that have learnt from them are tainted."""

    kind = "deletion.erased"
    counts: dict[str, int] = Field(default_factory=dict)
    versions: tuple[Version, ...] = ()


class DeletionExpired(OfDeletion):
    """Its deadline has passed: what the policy says for that happens, without proof."""

    kind = "deletion.expired"


class DeletionStuck(OfDeletion):
    """Its deadline has passed, and nothing can take the place of the version that has learnt what must be forgotten."""

    kind = "deletion.stuck"
    rule: str
    """Why no successor can be made."""

    def key(self, cycle: int) -> str | None:
        """Return nothing: it may be said again, for another reason."""
        return None


class DeletionCompleted(OfDeletion):
    """Tainted versions and runs are gone as well."""

    kind = "deletion.completed"
    counts: dict[str, int] = Field(default_factory=dict)
    generation: Tally = 0
    """Of the traffic, where it had to forget a version; 0 where it is as it was."""


class PolicyChanged(Payload):
    """Another policy holds from here on."""

    kind = "policy.changed"
    digest: Id
