"""Where a model's pictures lie in the space of features, kept in memory and up to date with the rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.features import unpack
from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.tables import EmbeddingRow

_READ_AT_ONCE = 500


@dataclass(frozen=True)
class Known:
    """What is said of a picture."""

    role: Role
    label: int | None
    """Where it is accepted."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Some pictures with their features."""

    numbers: NDArray[np.int64]
    """Rising."""
    features: NDArray[np.float16]
    """(n, f)."""
    labels: NDArray[np.int64]
    """Those accepted; -1 for none."""


class FeatureSpace:
    """Features and labels of all pictures of a model by one encoder.

    Args:
        model: Name of the model.
        encoder: Digest of the encoder.
        width: Features of a picture.
    """

    def __init__(self, model: str, encoder: str, width: int) -> None:
        self.model = model
        self.encoder = encoder
        self._width = width
        self._known: dict[int, Known] = {}
        self._vectors: dict[int, NDArray[np.float16]] = {}
        self._changed = -1

    def refresh(self, session: Session) -> None:
        """Take in what the rows say by now: what has changed since, and where the number of pictures differs all."""
        total = select(func.count()).select_from(ObservationRow).where(ObservationRow.model == self.model)
        self._learn(session)
        if session.scalar(total) != len(self._known):  # some are deleted
            self._known.clear()
            self._changed = -1
            self._learn(session)
        embedded = (EmbeddingRow.encoder == self.encoder, ObservationRow.model == self.model)
        joined = EmbeddingRow.observation == ObservationRow.number
        count = select(func.count()).select_from(EmbeddingRow).join(ObservationRow, joined).where(*embedded)
        if session.scalar(count) != len(self._vectors) or not self._vectors.keys() <= self._known.keys():
            statement = select(EmbeddingRow.observation).join(ObservationRow, joined).where(*embedded)
            self._read_vectors(session, set(session.scalars(statement)))

    def select(
        self, role: Role | None = None, *, accepted: bool = False, numbers: tuple[int, ...] | None = None
    ) -> Placed:
        """Return pictures that have features.

        Args:
            role: Those of it alone.
            accepted: Those that have a label alone.
            numbers: Those alone.
        """
        chosen = sorted(self._vectors) if numbers is None else sorted(set(numbers) & self._vectors.keys())
        if role is not None:
            chosen = [each for each in chosen if self._known[each].role is role]
        if accepted:
            chosen = [each for each in chosen if self._known[each].label is not None]
        labels = [self._known[each].label for each in chosen]
        features = np.empty((len(chosen), self._width), np.float16)
        for row, number in enumerate(chosen):
            features[row] = self._vectors[number]
        return Placed(
            np.array(chosen, np.int64), features, np.array([-1 if each is None else each for each in labels], np.int64)
        )

    def _learn(self, session: Session) -> None:
        statement = select(
            ObservationRow.number,
            ObservationRow.role,
            ObservationRow.state,
            ObservationRow.label,
            ObservationRow.changed_number,
        ).where(ObservationRow.model == self.model, ObservationRow.changed_number > self._changed)
        for number, role, state, label, changed in session.execute(statement):
            self._known[number] = Known(Role(role), label if state == State.ACCEPTED else None)
            self._changed = max(self._changed, changed)

    def _read_vectors(self, session: Session, there: set[int]) -> None:
        self._vectors = {number: vector for number, vector in self._vectors.items() if number in there}
        missing = sorted(there - self._vectors.keys())
        for start in range(0, len(missing), _READ_AT_ONCE):
            statement = select(EmbeddingRow.observation, EmbeddingRow.vector).where(
                EmbeddingRow.encoder == self.encoder,
                EmbeddingRow.observation.in_(missing[start : start + _READ_AT_ONCE]),
            )
            for number, vector in session.execute(statement):
                self._vectors[number] = unpack(vector)
