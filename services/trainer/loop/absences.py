"""Which version of a cycle inference does not have, and for how long: somebody may have moved or deleted its folder."""

from collections.abc import Iterable
from datetime import datetime

from aimass.inference.v1 import lifecycle_pb2 as pb
from services.trainer.loop.facts import Absence
from services.trainer.loop.state import Cycle, Stage

_JUDGED = (Stage.GATE, Stage.SHADOW, Stage.CANARY)
"""Stages at which both versions are needed."""


class Absences:
    """Remembers since when versions are absent; a process that starts again counts from its first look."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, int, datetime]] = {}
        """By model: cycle, version, and when it was found absent first."""

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
