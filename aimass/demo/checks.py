"""What must hold when the demonstration is over, read from the suite's database and from outside."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from aimass.demo.record import Record
from aimass.demo.referee import Referee
from aimass.demo.users import LIAR, Crowd
from aimass.trainer.v1.capture_pb2 import CapturedPrediction
from gateway.journal import Journal
from services.trainer.data.observing import Role
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.loop.cycle_payloads import GateMeasured
from services.trainer.storage.database import Database


def check(home: Path, record: Record, crowd: Crowd, referee: Referee, refused: int) -> dict[str, bool]:
    """Return what must hold, as sentences, and whether it does.

    Args:
        home: Folder of the suite, which has ended.
        record: What has happened.
        crowd: The users.
        referee: Has measured all versions that served.
        refused: Version that was proposed and is worse.
    """
    first, best = referee.accuracies[1], max(referee.accuracies[version] for _, version in record.serving)
    proposed = [each.cycle for each in record.events if each.payload.get("candidate") == refused]
    decided = [each.payload for each in record.events if each.kind == "gate.decided" and each.cycle in proposed]
    return {
        f"no request failed ({crowd.counts['answered']} answered, {crowd.counts['retried']} tried again)": (
            crowd.counts["failed"] == 0
        ),
        f"accuracy on pictures that nobody sent rose, {first:.1%} to {best:.1%}": best > first,
        "the worse candidate was refused, by a rule that the suite names": (
            len(decided) == 1 and decided[0]["outcome"] == "REFUSED" and bool(decided[0]["ruling"].get("rule"))
        ),
        f"version {refused}, which is worse, never served": all(version != refused for _, version in record.serving),
        "one call rolled back": any(event.kind == "rolled_back" for event in record.events),
        **invariants(home, record, crowd),
    }


def invariants(home: Path, record: Record, crowd: Crowd) -> dict[str, bool]:
    """Return what must hold whatever dies meanwhile, as sentences, and whether it does."""
    passed: set[int] = set()
    unproved = 0
    measured: list[tuple[datetime, int]] = []  # when, and how many drawn pictures had judged then
    for event in record.events:
        if event.kind == "gate.decided" and event.payload["outcome"] == "PASSED":
            passed.add(event.cycle)
        if event.kind == "promotion.intended" and event.cycle and event.cycle not in passed:
            unproved += 1
        if event.kind == "gate.measured":
            when = datetime.fromtimestamp(record.begin + event.seconds, UTC)
            measured.append((when, GateMeasured.model_validate(event.payload).figures.live.count))
    database = Database(f"sqlite:///{home / 'trainer.db'}")
    try:
        with database.read() as session:
            kept, samples = _count(session, select(PredictionRow)), _count(session, select(SampleRow))
            learnt = select(SnapshotSampleRow, ObservationRow.pixel_digest).join(
                ObservationRow, ObservationRow.number == SnapshotSampleRow.observation
            )
            judged = _count(session, learnt.where(ObservationRow.role == Role.JUDGE))
            drawn = (
                select(func.min(PredictionRow.time))
                .join(ObservationRow, ObservationRow.number == PredictionRow.observation)
                .where(PredictionRow.draw.is_not(None), ObservationRow.role == Role.JUDGE)
                .group_by(PredictionRow.observation)
            )
            judges = [datetime.fromisoformat(time) for time in session.scalars(drawn)]
            lies = (
                select(SnapshotSampleRow.observation)
                .join(VoteRow, VoteRow.observation == SnapshotSampleRow.observation)
                .where(VoteRow.contributor == LIAR, VoteRow.label == SnapshotSampleRow.label)
                .distinct()
            )
            lied = _count(session, lies)
            there = set(session.scalars(select(PredictionRow.id)))
            votes = select(VoteRow.contributor, ObservationRow.content_digest).join(
                ObservationRow, ObservationRow.number == VoteRow.observation
            )
            heard = {(contributor, digest) for contributor, digest in session.execute(votes)}
    finally:
        database.close()
    waiting = _in_journal(home / "captured")
    twice = [count for when, count in measured if count > sum(time <= when for time in judges)]
    lost, unheard = len(crowd.captured - there - waiting), len(crowd.heard - heard)
    return {
        f"none is lost of {len(crowd.captured)} predictions that were said to be captured": lost == 0,
        f"none is lost of {len(crowd.heard)} words that were taken in": unheard == 0,
        "nothing was promoted that had not passed the gate": unproved == 0,
        f"no judged picture was learnt from ({kept} predictions kept, {samples} samples)": judged == 0,
        f"no gate counted a picture twice (looked at {len(measured)} times; {len(judges)} were drawn to judge)": (
            not twice
        ),
        f"lies that were learnt: {lied}": lied == 0,
    }


def _in_journal(folder: Path) -> set[str]:
    """Return the predictions that wait there for a gateway to be started."""
    journal, found = Journal(folder), set[str]()
    for left in journal.left():
        journal.adopt(left, 1)
        found.update(CapturedPrediction.FromString(data).prediction_id for data in left.records)
    journal.close()
    return found


def _count(session: Session, statement: Select[*tuple[Any, ...]]) -> int:
    return session.scalar(select(func.count()).select_from(statement.subquery())) or 0
