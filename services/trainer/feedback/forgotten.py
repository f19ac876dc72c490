"""What is not taken any more, since it is to be forgotten: some of it may still be on its way."""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.common.identity import ANONYMOUS
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.feedback.tables import ContributorRow, DeletionRow

_CONTRIBUTOR, _SAMPLE, _COMPLETED = "CONTRIBUTOR", "SAMPLE", "COMPLETED"
_TO_THE_MINUTE = len("2026-01-02T03:04")
_NEVER = datetime.max.replace(tzinfo=UTC)


def has_deletions(session: Session) -> bool:
    """Whether anything was ever to be deleted."""
    return session.scalar(select(DeletionRow.id).limit(1)) is not None


def forgotten_until(session: Session, contributors: Collection[str]) -> dict[str, datetime]:
    """Return by contributor until when what they sent is refused; who never asked to be forgotten is not there.

    While a deletion is under way all is refused. A request takes name and keys away: whatever was sent without a new
    key, or before there was one, belongs to what was to be forgotten, however late it arrives. `anonymous` has no keys,
    so that the time of the request decides.
    """
    pseudonym = read_pseudonyms(session)
    names = {pseudonym(name): name for name in contributors if name}
    statement = select(DeletionRow.subject, DeletionRow.state, DeletionRow.report).where(
        DeletionRow.kind == _CONTRIBUTOR, DeletionRow.subject.in_(sorted(names))
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


def deleted_until(session: Session, times: Collection[str]) -> dict[tuple[str, str], datetime]:
    """Return by model and fingerprint of the pixels until when captures of a deleted picture are refused.

    A gateway that was killed sends again what was receipted and is deleted since. The same picture captured later is
    somebody's new request.

    Args:
        session: Of any transaction.
        times: When what has come was captured, RFC 3339 in UTC; deletions before all of them are left out.
    """
    if not times:
        return {}
    report = DeletionRow.report
    end = func.coalesce(report["erase_time"].as_string(), report["request_time"].as_string())
    # A text that ends with the minute sorts before all times of it, however their seconds are written.
    oldest = min(times)[:_TO_THE_MINUTE]
    until: dict[tuple[str, str], datetime] = {}
    for each in session.scalars(select(report).where(DeletionRow.kind == _SAMPLE, end > oldest)):
        time = datetime.fromisoformat(each.get("erase_time") or each["request_time"])
        for model in (name for name, part in each["parts"].items() if part["observations"]):
            for mark in each["fingerprints"]:
                until[model, mark] = max(time, until.get((model, mark), time))
    return until
