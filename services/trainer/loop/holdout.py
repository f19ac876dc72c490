"""The hold-out: labelled contents of a set that no version learns from, and what versions answer to them."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.features import unpack
from services.trainer.feedback.tables import AnswerRow
from services.trainer.loop.kinds import HOLDOUT
from services.trainer.loop.tables import FigureRow, SetAnswersRow


@dataclass(frozen=True, eq=False)
class Holdout:
    """The hold-out with what two versions make of it, in its order."""

    labels: NDArray[np.int64]
    """(n,)."""
    champion: NDArray[np.int64]
    """Best classes, (n,)."""
    candidate: NDArray[np.int64]
    """As *champion*."""
    champion_probabilities: NDArray[np.float32]
    """(n, classes)."""
    candidate_probabilities: NDArray[np.float32]
    """As *champion_probabilities*."""

    @property
    def outcomes(self) -> NDArray[np.int8]:
        """WIN, TIE or LOSS of the candidate, (n,)."""
        right: NDArray[np.int8] = (self.candidate == self.labels).astype(np.int8)
        right -= self.champion == self.labels
        return right


def read_holdout(session: Session, model: str, name: str, champion: int, candidate: int) -> Holdout | None:
    """Return a hold-out with the answers of both versions; None before both have answered the whole of it.

    Args:
        session: Of the database.
        model: Name of the model.
        name: Of the set whose test part it is.
        champion: Version.
        candidate: Version.
    """
    row = find_holdout(session, model, name)
    if row is None:
        return None
    ours, theirs = (
        session.get(SetAnswersRow, (model, version, row.window["digest"])) for version in (champion, candidate)
    )
    if ours is None or theirs is None:
        return None
    order = np.array(row.values["order"], np.int64)
    return Holdout(
        np.array(row.values["labels"], np.int64)[order],
        _best(ours)[order],
        _best(theirs)[order],
        _probabilities(ours)[order],
        _probabilities(theirs)[order],
    )


def find_holdout(session: Session, model: str, name: str) -> FigureRow | None:
    """Return what is known of the hold-out of the set *name*; None before that was prepared."""
    statement = select(FigureRow).where(
        FigureRow.model == model, FigureRow.kind == HOLDOUT, FigureRow.window["set"].as_string() == name
    )
    return session.scalar(statement.order_by(FigureRow.number.desc()).limit(1))


def count_answers(session: Session, model: str, name: str, versions: tuple[int, int]) -> tuple[str, int, int]:
    """Return by what it shows that more was answered: the hold-out, its answers, and those of pictures."""
    holdout = find_holdout(session, model, name)
    digest = str(holdout.window["digest"]) if holdout is not None else ""
    sets = select(func.count()).where(
        SetAnswersRow.model == model, SetAnswersRow.version.in_(versions), SetAnswersRow.set_digest == digest
    )
    return digest, session.scalar(sets) or 0, count_picture_answers(session, model, versions)


def count_picture_answers(session: Session, model: str, versions: Collection[int]) -> int:
    """Return how many pictures of users versions have answered; read from an index alone."""
    statement = select(func.count()).where(AnswerRow.model == model, AnswerRow.version.in_(versions))
    return session.scalar(statement) or 0


def _best(row: SetAnswersRow) -> NDArray[np.int64]:
    return np.frombuffer(row.best, "<i2").astype(np.int64)


def _probabilities(row: SetAnswersRow) -> NDArray[np.float32]:
    count = len(row.best) // np.dtype("<i2").itemsize
    return unpack(row.probabilities).astype(np.float32).reshape(count, -1)
