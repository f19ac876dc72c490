"""What versions are judged by on the traffic, read from rows: a look costs what is read, not what is stored.

Only what trusted contributors say counts as a label here. Contents that candidates are judged on are those of the role
to judge, which no version learns from.

Every stream begins after the draws of which pictures were forgotten for their age: those that reviewers had chosen are
left of them. Where it begins is kept by `feedback.beginnings`: that of a gate rests while the gate is open, and that of
judged draws moves rarely, and each time is counted. What somebody wished to be deleted moves no beginning: it goes
whatever reviewers said of it, the traffic of all others stays complete, and whoever sends and deletes could else keep a
stream from ever growing.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from services.trainer.data.models import Model
from services.trainer.data.observing import Role, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.tables import AnswerRow, ContributorRow, FindingRow, LoopModelRow
from services.trainer.statistics.betting import LOSS, TIE, WIN

UNKNOWN_CLASS = -1
"""Label of a picture of which a reviewer says that it is of no class of the model."""
UNREADABLE = "UNREADABLE"
"""Kind of the finding that a picture's file is gone or damaged: no version and no reviewer will ever say what it is."""
UNDECIDED = -2
"""Stands for a picture on which reviewers cannot tell, differ, or that they do not want; it is left out."""
_AHEAD = 2000
"""Draws from the first without a label on, among which those contents are counted whose label would help."""
_AT_ONCE = 2000
"""Draws of one page; their pictures are named in one statement."""


@dataclass(frozen=True, eq=False)
class LiveStream:
    """Contents of the traffic that candidate and champion were both judged on."""

    outcomes: NDArray[np.int8]
    """WIN, TIE or LOSS, (n,), in the order of their first draws."""
    undecided: int
    """Left out: no reviewer can tell."""
    labels_wanted: int
    """Of the next contents, those that the versions differ on and nobody has judged."""


@dataclass(frozen=True, eq=False)
class JudgedDraws:
    """Answers of one version that were drawn at random and judged."""

    correct: NDArray[np.bool_]
    """(n,), in the order of the draws."""
    probability: NDArray[np.float64]
    """With which each was drawn, (n,)."""
    draw: NDArray[np.int64]
    """Numbers of the draws, rising, (n,)."""
    restarts: int
    """How often the draws of this version have begun anew, further on."""


def last_incomplete(session: Session, model: str) -> int:
    """Return the draw that judged draws of a model, and windows, begin after: of those up to it some were forgotten."""
    row = session.get(LoopModelRow, model)
    return row.incomplete_draw if row is not None else 0


def _gate_draws(session: Session, model: str) -> tuple[int, int]:
    """Return the draw that contents to judge candidates by begin after, and the last one that they are of."""
    row = session.get(LoopModelRow, model)
    newest = session.scalar(select(func.max(PredictionRow.draw)).where(PredictionRow.model == model)) or 0
    if row is None:
        return 0, newest
    return row.gate_begin_draw, newest if row.gate_end_draw is None else min(newest, row.gate_end_draw)


def read_decisions(session: Session, pictures: Sequence[int]) -> dict[int, int]:
    """Return what reviewers decide, by number of the picture: a label, `UNKNOWN_CLASS` or `UNDECIDED`.

    Those of *pictures*, no more than fit into one statement, that no reviewer has decided on are not there.
    """
    statement = (
        select(VoteRow.observation, VoteRow.verdict, VoteRow.label, VoteRow.proposal)
        .outerjoin(ContributorRow, ContributorRow.name == VoteRow.contributor)
        .where(VoteRow.observation.in_(pictures), VoteRow.trusted, VoteRow.verdict != VoteKind.WRONG)
        .where(func.coalesce(ContributorRow.blocked, False).is_(False))
    )
    words: defaultdict[int, set[tuple[str, int | None, str]]] = defaultdict(set)
    for observation, verdict, label, proposal in session.execute(statement):
        words[observation].add((verdict, label, proposal))
    return {observation: _decision(said) for observation, said in words.items()}


def _decision(words: set[tuple[str, int | None, str]]) -> int:
    """Return what *words* say together; who cannot tell does not contradict who can."""
    telling = {each for each in words if each[0] != VoteKind.UNDECIDABLE}
    if len(telling) != 1:
        return UNDECIDED
    verdict, label, _ = telling.pop()
    if verdict == VoteKind.PROPOSAL:
        return UNKNOWN_CLASS
    return UNDECIDED if verdict == VoteKind.REJECT or label is None else label


def read_live_stream(session: Session, model: str, champion: int, candidate: int, most: int) -> LiveStream:
    """Return the outcomes on the traffic, up to the first content that is not known yet.

    Draws of contents of the role to judge, in the order of the draws, each content once. Where both versions answer
    alike the outcome is known without a label; the first content that both have not answered, or that they differ on
    and nobody has judged, ends the stream, so that what counts cannot depend on how it looks. Contents that one of them
    has learnt, as a version that was proposed by hand may have, and those that cannot be read are passed over.

    Args:
        session: Of the database.
        model: Name of the model.
        champion: Version.
        candidate: Version.
        most: Outcomes that are of use; with them the stream ends.
    """
    outcomes: list[int] = []
    undecided = wanted = 0
    end: int | None = None
    for content in _contents(session, model, champion, candidate):
        if len(outcomes) == most or (end is not None and content.draw >= end + _AHEAD):
            break
        if end is None and not content.known:
            end = content.draw
        if end is not None:
            wanted += content.differs and content.decision is None
        elif content.differs and content.decision == UNDECIDED:
            undecided += 1
        else:
            outcomes.append(content.outcome)
    return LiveStream(np.array(outcomes, np.int8), undecided, wanted)


@dataclass(frozen=True)
class _Content:
    """A content to judge by, with what both versions make of it."""

    draw: int
    """The first of it."""
    champion: int | None
    """Best class; None where it is not answered."""
    candidate: int | None
    """As *champion*."""
    decision: int | None
    """None where no reviewer has decided, or none need to."""

    @property
    def answered(self) -> bool:
        return self.champion is not None and self.candidate is not None

    @property
    def differs(self) -> bool:
        return self.answered and self.champion != self.candidate

    @property
    def known(self) -> bool:
        return self.answered and (not self.differs or self.decision is not None)

    @property
    def outcome(self) -> int:
        if not self.differs:
            return TIE
        if self.candidate == self.decision:
            return WIN
        return LOSS if self.champion == self.decision else TIE


def _contents(session: Session, model: str, champion: int, candidate: int) -> Iterator[_Content]:
    """Yield the contents that count, in the order of their first draws; no more is read than is asked for."""
    begin, end = _gate_draws(session, model)
    earlier = aliased(PredictionRow)
    repeated = select(earlier.draw).where(  # of the index alone
        earlier.observation == PredictionRow.observation, earlier.draw > begin, earlier.draw < PredictionRow.draw
    )
    first = (
        select(PredictionRow.observation, PredictionRow.draw)
        .join(ObservationRow, ObservationRow.number == PredictionRow.observation)
        .where(PredictionRow.model == model, ObservationRow.role == Role.JUDGE, ~repeated.exists())
        .order_by(PredictionRow.draw)
    )
    for last in range(begin, end, _AT_ONCE):
        within = first.where(PredictionRow.draw > last, PredictionRow.draw <= min(last + _AT_ONCE, end))
        page: Sequence[Any] = session.execute(within).all()
        answers = _answers(session, model, [number for number, _ in page], champion, candidate)
        decisions = read_decisions(session, [number for number, (ours, theirs) in answers.items() if ours != theirs])
        for number, draw in page:
            if number in answers:
                yield _Content(draw, *answers[number], decisions.get(number))


def _answers(
    session: Session, model: str, pictures: Sequence[int], champion: int, candidate: int
) -> dict[int, tuple[int | None, int | None]]:
    """Return what both versions answer to *pictures*, by number; those that may not be judged by are left out."""
    ours, theirs = aliased(AnswerRow), aliased(AnswerRow)
    statement = select(ObservationRow.number, ours.best, theirs.best, ours.learnt, theirs.learnt).where(
        ObservationRow.number.in_(pictures)
    )
    for answers, version in ((ours, champion), (theirs, candidate)):
        of_it = (answers.model == model) & (answers.version == version) & (answers.observation == ObservationRow.number)
        statement = statement.outerjoin(answers, of_it)
    rows = session.execute(statement).all()
    found = {row[0]: (row[1], row[2]) for row in rows if not (row[3] or row[4])}
    lost = _unreadable(session, [number for number, both in found.items() if None in both])
    return {number: both for number, both in found.items() if number not in lost}


def _unreadable(session: Session, pictures: Sequence[int]) -> set[int]:
    """Return the numbers of those of *pictures* that cannot be read."""
    if not pictures:
        return set()
    statement = select(FindingRow.observation).where(
        FindingRow.observation.in_(pictures), FindingRow.kind == UNREADABLE
    )
    return set(session.scalars(statement))


def read_judged_draws(session: Session, task: Model, version: int, *, asked: bool) -> JudgedDraws:
    """Return the draws that *version* has answered, up to the first one that no reviewer has decided on.

    Those that it has learnt, which say nothing of others, are passed over, and those that cannot be read, and so not be
    reviewed. Whether it has learnt a picture is known once the analyst has asked it what it makes of that: one that it
    is still to be asked ends the draws as well, and where it may never be asked, those are passed over. Both are the
    same whatever reviewers say, so that what counts cannot depend on how it looks.

    Args:
        session: Of the database.
        task: The model.
        version: Whose accuracy is measured.
        asked: Whether the analyst asks it: whether it serves.
    """
    numbers = {label: number for number, label in enumerate(task.labels)}
    correct, probability, draws = list[bool](), list[float](), list[int]()
    decisions, lost = dict[int, int](), set[int]()
    restarts = _restarts(session, task.name, version)
    for page in _version_draws(session, task.name, version):
        learnt = _learnt(session, task.name, version, list({row[0] for row in page}))
        rows = [row for row in page if not learnt.get(row[0], not asked)]
        pictures = list({row[0] for row in rows} - decisions.keys() - lost)
        decisions |= read_decisions(session, pictures)
        lost |= _unreadable(session, [each for each in pictures if each not in decisions or each not in learnt])
        for number, label, drawn_with, draw in rows:
            if number in lost:
                continue
            if number not in decisions or number not in learnt:
                return _judged(correct, probability, draws, restarts)
            if decisions[number] != UNDECIDED:
                correct.append(numbers.get(label) == decisions[number])
                probability.append(drawn_with)
                draws.append(draw)
    return _judged(correct, probability, draws, restarts)


def _learnt(session: Session, model: str, version: int, pictures: Sequence[int]) -> dict[int, bool]:
    """Return whether a version has learnt each of *pictures* that it was asked about, by number."""
    statement = select(AnswerRow.observation, AnswerRow.learnt).where(
        AnswerRow.model == model, AnswerRow.version == version, AnswerRow.observation.in_(pictures)
    )
    return dict(iter(session.execute(statement)))


def _version_draws(session: Session, model: str, version: int) -> Iterator[Sequence[Any]]:
    """Yield the draws that a version has answered in their order, page by page: picture, label, probability, draw."""
    label = PredictionRow.labels[(0, 0)].as_string()
    statement = (
        select(PredictionRow.observation, label, PredictionRow.probability, PredictionRow.draw)
        .where(PredictionRow.model == model, PredictionRow.version == version)
        .order_by(PredictionRow.draw)
        .limit(_AT_ONCE)
    )
    last = last_incomplete(session, model)
    while page := session.execute(statement.where(PredictionRow.draw > last)).all():
        yield page
        last = page[-1].draw


def _restarts(session: Session, model: str, version: int) -> int:
    row = session.get(LoopModelRow, model)
    return row.restarts.get(str(version), 0) if row is not None else 0


def _judged(correct: Sequence[bool], probability: Sequence[float], draws: Sequence[int], restarts: int) -> JudgedDraws:
    return JudgedDraws(
        np.array(correct, np.bool_), np.array(probability, np.float64), np.array(draws, np.int64), restarts
    )
