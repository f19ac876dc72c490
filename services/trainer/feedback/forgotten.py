"""Whose pictures are not taken any more, since they asked to be forgotten: some may still be on their way."""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import JSON, String, column, select, table
from sqlalchemy.orm import Session

from services.common.identity import ANONYMOUS
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.feedback.tables import ContributorRow

_DELETIONS = table(
    "deletions", column("kind", String), column("subject", String), column("state", String), column("report", JSON)
)
"""Belongs to `loop.tables`, which builds on this package; it is only read here."""
_CONTRIBUTOR, _COMPLETED = "CONTRIBUTOR", "COMPLETED"
_NEVER = datetime.max.replace(tzinfo=UTC)


def forgotten_until(session: Session, contributors: Collection[str]) -> dict[str, datetime]:
    """Return by contributor until when what they sent is refused; who never asked to be forgotten is not there.

    While a deletion is under way all is refused. A request takes name and keys away: whatever was sent without a new
    key, or before there was one, belongs to what was to be forgotten, however late it arrives. `anonymous` has no keys,
    so that the time of the request decides.
    """
    pseudonym = read_pseudonyms(session)
    names = {pseudonym(name): name for name in contributors if name}
    statement = select(_DELETIONS.c.subject, _DELETIONS.c.state, _DELETIONS.c.report).where(
        _DELETIONS.c.kind == _CONTRIBUTOR, _DELETIONS.c.subject.in_(sorted(names))
    )
    until: dict[str, datetime] = {}
    for subject, state, report in session.execute(statement):
        name = names[subject]
        person = session.get(ContributorRow, name)
        if state != _COMPLETED:
            end = _NEVER
        elif name == ANONYMOUS:
            end = datetime.fromisoformat(report["request_time"])
        else:
            end = _NEVER if person is None else datetime.fromisoformat(person.create_time)
        until[name] = max(end, until.get(name, end))
    return until
