"""Removes what versions of the past have answered, once nothing is judged by it any more."""

from collections.abc import Collection

from sqlalchemy import delete, exists, select

from services.trainer.data.tables import PredictionRow
from services.trainer.feedback.tables import AnswerRow
from services.trainer.loop.tables import SetAnswersRow
from services.trainer.storage.database import Database

_AT_ONCE = 500


def prune_answers(database: Database, model: str, in_use: Collection[int]) -> int:
    """Remove the answers of versions that were given to judge them by, and return how many there were.

    What they answered to pictures that were drawn for themselves stays with the picture, and so does that they have
    learnt one: their accuracy on the traffic, which is told for long, depends on it. A version that is judged anew is
    asked again.

    Args:
        database: Migrated.
        model: Name of the model.
        in_use: Versions that have a part in the traffic or in the cycle under way, or may come back.

    Raises:
        NotReady: The database does not answer; what was removed before stays removed.
    """
    with database.begin(alone=True) as session:
        past = SetAnswersRow.version.not_in(in_use)
        session.execute(delete(SetAnswersRow).where(SetAnswersRow.model == model, past))
        versions = select(AnswerRow.version).where(AnswerRow.model == model, AnswerRow.version.not_in(in_use))
        found = list(session.scalars(versions.distinct()))
    return sum(_prune_version(database, model, version) for version in found)


def _prune_version(database: Database, model: str, version: int) -> int:
    drawn = exists().where(
        PredictionRow.observation == AnswerRow.observation,
        PredictionRow.version == version,
        PredictionRow.draw.is_not(None),
    )
    mine = (AnswerRow.model == model) & (AnswerRow.version == version)
    statement = select(AnswerRow.observation).where(mine, ~AnswerRow.learnt, ~drawn).order_by(AnswerRow.observation)
    removed, last = 0, 0
    while True:
        with database.begin(alone=True) as session:
            pictures = list(session.scalars(statement.where(AnswerRow.observation > last).limit(_AT_ONCE)))
            session.execute(delete(AnswerRow).where(mine, AnswerRow.observation.in_(pictures)))
        removed += len(pictures)
        if len(pictures) < _AT_ONCE:
            return removed
        last = pictures[-1]
