"""What reviewers may not see before they decide: whoever knows an answer, or what others say, is drawn towards it.

Live accuracy and the gate rest on what reviewers say of random draws. So of a picture that is drawn, or that has the
role to judge and may be drawn yet, the answers are withheld until a reviewer has decided on it, and so is what others
say. The exception is a picture to learn from that was held up: what was said of it is what has to be decided.
"""

from sqlalchemy import ColumnElement, and_, exists, or_, select

from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.tables import ContributorRow

HELD_UP = (State.QUARANTINED, State.PROPOSED)
"""States that only a person ends."""


def is_decided() -> ColumnElement[bool]:
    """Whether a reviewer has decided on the picture, as those who judge by it count it."""
    return exists().where(
        VoteRow.observation == ObservationRow.number,
        VoteRow.trusted,
        VoteRow.verdict != VoteKind.WRONG,
        ~exists().where(ContributorRow.name == VoteRow.contributor, ContributorRow.blocked).correlate(VoteRow),
    )


def is_drawn() -> ColumnElement[bool]:
    """Whether the picture was drawn at random, at least once."""
    drawn = select(PredictionRow.draw)  # of the index alone
    return drawn.where(PredictionRow.observation == ObservationRow.number, PredictionRow.draw.is_not(None)).exists()


def hides_answers() -> ColumnElement[bool]:
    """Whether reviewers may not see what versions answer to the picture."""
    return and_(or_(ObservationRow.role == Role.JUDGE, is_drawn()), ~is_decided())


def hides_words() -> ColumnElement[bool]:
    """Whether reviewers may not see what others say of the picture either."""
    held_up = and_(ObservationRow.role == Role.TRAIN, ObservationRow.state.in_(HELD_UP))
    return and_(hides_answers(), ~held_up)
