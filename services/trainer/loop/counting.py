"""Counts of rows that take long to make, made anew when something has come or some seconds have passed."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.capturing import stored_bytes
from services.trainer.loop.forecasts import read_fixed, requests_per_day
from services.trainer.loop.holdout import count_picture_answers
from services.trainer.loop.log import Clock, EventLog
from services.trainer.loop.overview import count_accepted, newest_sample, pictures_wait
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.state import LoopState
from services.trainer.loop.streams import last_incomplete
from services.trainer.storage.database import Database

_SECONDS = 10.0
"""Between two counts of the traffic, and of what it has left."""
_ACCEPTED_SECONDS = 60.0
"""Between two counts of samples to which none has come: pictures whose time is over go without a word."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Seen:
    """By what it shows that rows have changed."""

    changed: int
    """Number of the last thing that was said or found of a picture of the model."""
    draw: int
    """Of the model's last draw."""
    beginning: int
    """As `last_incomplete` has it."""
    answers: int
    """Of the champion to pictures of users, which tell what it has learnt too."""


def look_at_rows(session: Session, model: str, champion: int) -> Seen:
    """Return what shows that rows of a model have changed; the version *champion* serves, 0 for none."""
    changed = session.scalar(select(func.max(ObservationRow.changed_number)).where(ObservationRow.model == model))
    draw = session.scalar(select(func.max(PredictionRow.draw)).where(PredictionRow.model == model))
    answers = count_picture_answers(session, model, (champion,))
    return Seen(changed or 0, draw or 0, last_incomplete(session, model), answers)


class Memory:
    """Remembers what takes long to find."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Hashable, Any]] = {}

    def of(self, name: str, model: str, fingerprint: Hashable, find: Callable[[], Value]) -> Value:
        """Return what *find* gave when *fingerprint* was the same."""
        known = self._known.get((name, model))
        if known is None or known[0] != fingerprint:
            known = (fingerprint, find())
            self._known[name, model] = known
        return cast("Value", known[1])


class Counting:
    """Counts what the loops of all models depend on.

    Args:
        database: Migrated.
        log: Of events.
        clock: Gives the present time.
    """

    def __init__(self, database: Database, log: EventLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._memory = Memory()

    def accepted(self, state: LoopState) -> tuple[int, int]:
        """Return how many samples there are to learn from, and how many of them no settled candidate has learnt."""

        def find() -> tuple[int, int]:
            with self._database.read() as session:
                return count_accepted(session, state.model, state.last_sample)

        with self._database.read() as session:
            newest = newest_sample(session, state.model)
        fingerprint = (newest, state.number, self._period(_ACCEPTED_SECONDS))
        return self._memory.of("accepted", state.model, fingerprint, find)

    def requests_per_day(self, model: str) -> float | None:
        """Return how many requests a day there are; None where nothing was drawn."""

        def find() -> float | None:
            with self._database.read() as session:
                return requests_per_day(session, model, self._clock())

        return self._memory.of("requests", model, self._period(_SECONDS), find)

    def fixed(self, state: LoopState) -> tuple[int, int]:
        """Return how many of the champion's errors the last candidates have put right, of how many; between cycles."""
        return self._memory.of("fixed", state.model, state.cycles, lambda: read_fixed(self._log, state.model))

    def pictures_wait(self, model: str, policy: LoopPolicy, judgeable: bool) -> bool:
        """Whether an analyst has something to do.

        Args:
            model: Name of the model.
            policy: Of the model.
            judgeable: Whether its hold-out is there.
        """

        def find() -> bool:
            with self._database.read() as session:
                return pictures_wait(session, model)

        if policy.judging.holdout and not judgeable:
            return True  # the analyst reads the set
        return self._memory.of("waiting", model, self._period(_SECONDS), find)

    def stored_bytes(self, model: str) -> int:
        """Return how much the pictures of a model take."""

        def find() -> int:
            with self._database.read() as session:
                return stored_bytes(session, model)

        return self._memory.of("stored", model, self._period(_SECONDS), find)

    def _period(self, seconds: float) -> float:
        return self._clock().timestamp() // seconds
