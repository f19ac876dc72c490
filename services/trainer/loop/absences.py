"""Which version of a cycle, or model, inference does not have, and for how long: its folder may be moved or deleted."""

from collections.abc import Iterable
from datetime import datetime

from aimass.inference.v1 import lifecycle_pb2 as pb
from services.trainer.loop.facts import Absence
from services.trainer.loop.stages import ABSENT_SECONDS
from services.trainer.loop.state import Cycle, LoopState, Stage

_JUDGED = (Stage.GATE, Stage.SHADOW, Stage.CANARY)
"""Stages at which both versions are needed."""


class Absences:
    """Remembers since when versions and models are absent; a process that starts again counts from its first look."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, int, datetime]] = {}
        """By model: cycle, version, and when it was found absent first."""
        self._unlisted: dict[str, datetime] = {}
        """By model: when it was found absent first."""

    def look(self, model: str, cycle: Cycle | None, state: pb.ModelState | None, now: datetime) -> Absence | None:
        """Return which version of *cycle* is absent, the candidate where both are; None where none is.

        Args:
            model: Name of the model.
            cycle: Under way; None for none.
            state: What inference says; None while it does not answer; an absence then begins anew with its next answer.
            now: With its zone.
        """
        before = self._since.pop(model, None)
        version = _absent(cycle, state.versions) if cycle is not None and state is not None else 0
        if cycle is None or not version:
            return None
        same = before is not None and before[:2] == (cycle.number, version)
        since = before[2] if before is not None and same else now
        self._since[model] = cycle.number, version, since
        return Absence(version, (now - since).total_seconds())

    def may_come_back(self, loop: LoopState, state: pb.ModelState, now: datetime) -> bool:
        """Whether inference lists nothing of a model whose traffic the loop knows, for less than `ABSENT_SECONDS`.

        A folder that is moved takes the traffic with it and brings it back: as long as it may, nobody has changed it.

        Args:
            loop: Of the model.
            state: What inference says.
            now: With its zone.
        """
        if state.versions or state.traffic.generation or not loop.generation:
            self._unlisted.pop(loop.model, None)
            return False
        since = self._unlisted.setdefault(loop.model, now)
        return (now - since).total_seconds() < ABSENT_SECONDS


def _absent(cycle: Cycle, versions: Iterable[pb.ModelVersion]) -> int:
    """Return the version that is absent; 0 for none.

    One without a part in the traffic may be there and not be loaded. The champion always has a part, and so has a
    candidate on trial.
    """
    if cycle.stage not in _JUDGED:
        return 0
    states = {each.version: each.state for each in versions}
    unavailable = pb.ModelVersion.STATE_UNAVAILABLE
    for version, serves in ((cycle.candidate, cycle.in_traffic), (cycle.champion, True)):
        if version not in states or (serves and states[version] == unavailable):
            return version
    return 0
