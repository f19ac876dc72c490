"""What the loop does next: a word in the log, or one effect outside of it.

Every effect can be repeated without harm, as it must be when the process dies before the log says that it was done.
"""

from dataclasses import dataclass

from services.trainer.loop.payloads import Payload
from services.trainer.loop.policy import Strategy
from services.trainer.loop.values import Wanted


@dataclass(frozen=True)
class Record:
    """Append an event; nothing else happens."""

    payload: Payload


@dataclass(frozen=True)
class MakeSnapshot:
    """Choose the samples, and append `snapshot.made` in the same transaction."""

    cycle: int


@dataclass(frozen=True)
class CreateRun:
    """Create the run that makes the candidate; the same cycle and attempt give the run that is there."""

    cycle: int
    attempt: int
    strategy: Strategy
    snapshot: str
    source: str
    """Run that it starts from; empty where a new network starts from none."""


@dataclass(frozen=True)
class CancelRun:
    """Cancel a run, or find that it has ended; then append `run.ended` with its state and the rule."""

    run_id: str
    rule: str


@dataclass(frozen=True)
class PublishCandidate:
    """Publish a run's model without traffic; the same id gives the version that is there."""

    publication_id: str
    run_id: str


@dataclass(frozen=True)
class SetTraffic:
    """Ask inference for the traffic, if it still has the generation. Appends nothing: the next look at it does."""

    wanted: Wanted
    generation: int
    withdrawal: bool
    """Tried again for as long as it takes: it leaves the champion alone in the traffic, which nothing may prevent."""


@dataclass(frozen=True)
class EraseRows:
    """Remove rows and pictures of a deletion, find out what has learnt from them, and append `deletion.erased`."""

    deletion_id: str


@dataclass(frozen=True)
class EraseVersions:
    """Remove tainted versions and runs, and append `deletion.completed`. None of them has traffic."""

    deletion_id: str
    versions: tuple[int, ...]


Action = Record | MakeSnapshot | CreateRun | CancelRun | PublishCandidate | SetTraffic | EraseRows | EraseVersions
