"""What versions are judged by: outcomes on the hold-out and on the traffic, read from rows.

Only what trusted contributors say counts as a label here. Contents of the traffic are those of the role to judge, which
no version learns from.
"""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from services.trainer.data.models import Model
from services.trainer.data.observing import Role, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.tables import AnswerRow, ContributorRow, FindingRow
from services.trainer.loop.tables import FigureRow, SetAnswersRow
from services.trainer.statistics.betting import LOSS, TIE, WIN

HOLDOUT = "holdout"
"""Kind of the figures that say what a hold-out is: `set` and `digest` in the window; labels of its contents, and the
order in which they count, which follows from the contents and the model's salt alone."""
UNKNOWN_CLASS = -1
"""Label of a picture of which a reviewer says that it is of no class of the model."""
UNREADABLE = "UNREADABLE"
"""Kind of the finding that a picture's file is gone or damaged: no version and no reviewer will ever say what it is."""
UNDECIDED = -2
"""Stands for a picture on which reviewers cannot tell, differ, or that they do not want; it is left out."""
_AHEAD = 500
"""Contents after the first without a label among which those are counted whose label would help."""
_AT_ONCE = 500


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


@dataclass(frozen=True, eq=False)
class JudgedDraws:
    """Answers of one version that were drawn at random and judged."""

    correct: NDArray[np.bool_]
    """(n,), in the order of the draws."""
    probability: NDArray[np.float64]
    """With which each was drawn, (n,)."""
    draw: NDArray[np.int64]
    """Numbers of the draws, rising, (n,)."""


def read_decisions(session: Session, model: str) -> dict[int, int]:
    """Return what reviewers decide, by number of the picture: a label, `UNKNOWN_CLASS` or `UNDECIDED`.

    Pictures that no reviewer has decided on are not there.
    """
    statement = (
        select(VoteRow.observation, VoteRow.verdict, VoteRow.label, VoteRow.proposal)
        .join(ObservationRow, ObservationRow.number == VoteRow.observation)
        .outerjoin(ContributorRow, ContributorRow.name == VoteRow.contributor)
        .where(ObservationRow.model == model, VoteRow.trusted, VoteRow.verdict != VoteKind.WRONG)
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


def read_live_stream(session: Session, model: str, champion: int, candidate: int) -> LiveStream:
    """Return the outcomes on the traffic, up to the first content that is not known yet.

    Draws of contents of the role to judge, in the order of the draws, each content once. Where both versions answer
    alike the outcome is known without a label; the first content that both have not answered, or that they differ on
    and nobody has judged, ends the stream, so that what counts cannot depend on how it looks. Contents that one of them
    has learnt, as a version that was proposed by hand may have, and those that cannot be read are passed over.
    """
    decisions = read_decisions(session, model)
    unreadable = _unreadable(session, model)
    outcomes: list[int] = []
    undecided = wanted = 0
    ahead: int | None = None
    for number, ours, theirs, ours_learnt, theirs_learnt in _drawn(session, model, champion, candidate):
        decision = decisions.get(number)
        answered = ours is not None and theirs is not None
        if ours_learnt or theirs_learnt or (number in unreadable and not answered):
            continue
        if ahead is None and not (answered and (ours == theirs or decision is not None)):
            ahead = 0
        if ahead is None:
            if ours == theirs:
                outcomes.append(TIE)
            elif decision == UNDECIDED:
                undecided += 1
            else:
                outcomes.append(_outcome(decision, ours, theirs))
        elif ahead < _AHEAD:
            wanted += answered and ours != theirs and decision is None
            ahead += 1
        else:
            break
    return LiveStream(np.array(outcomes, np.int8), undecided, wanted)


def _outcome(label: int | None, champion: int | None, candidate: int | None) -> int:
    if candidate == label:
        return WIN
    return LOSS if champion == label else TIE


def _drawn(session: Session, model: str, champion: int, candidate: int) -> Any:
    """Yield number, answers, and whether it was learnt, of each content to judge by, in the order of its first draw."""
    draws = (
        select(PredictionRow.observation, func.min(PredictionRow.draw).label("draw"))
        .where(PredictionRow.model == model, PredictionRow.draw.is_not(None))
        .group_by(PredictionRow.observation)
        .subquery()
    )
    ours, theirs = aliased(AnswerRow), aliased(AnswerRow)
    statement = (
        select(ObservationRow.number, ours.best, theirs.best, ours.learnt, theirs.learnt)
        .join(draws, draws.c.observation == ObservationRow.number)
        .where(ObservationRow.model == model, ObservationRow.role == Role.JUDGE)
        .order_by(draws.c.draw)
    )
    for answers, version in ((ours, champion), (theirs, candidate)):
        of_it = (answers.model == model) & (answers.version == version) & (answers.observation == ObservationRow.number)
        statement = statement.outerjoin(answers, of_it)
    return session.execute(statement.execution_options(yield_per=_AT_ONCE))


def _unreadable(session: Session, model: str) -> set[int]:
    """Return the numbers of the pictures that cannot be read."""
    statement = (
        select(FindingRow.observation)
        .join(ObservationRow, ObservationRow.number == FindingRow.observation)
        .where(ObservationRow.model == model, FindingRow.kind == UNREADABLE)
    )
    return set(session.scalars(statement))


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
    pictures = select(func.count()).where(AnswerRow.model == model, AnswerRow.version.in_(versions))
    sets = select(func.count()).where(
        SetAnswersRow.model == model, SetAnswersRow.version.in_(versions), SetAnswersRow.set_digest == digest
    )
    return digest, session.scalar(sets) or 0, session.scalar(pictures) or 0


def _best(row: SetAnswersRow) -> NDArray[np.int64]:
    return np.frombuffer(row.best, "<i2").astype(np.int64)


def _probabilities(row: SetAnswersRow) -> NDArray[np.float32]:
    count = len(row.best) // np.dtype("<i2").itemsize
    return np.frombuffer(row.probabilities, "<f2").astype(np.float32).reshape(count, -1)


def read_judged_draws(session: Session, task: Model, version: int, learnt: Container[int]) -> JudgedDraws:
    """Return the draws that *version* has answered, up to the first one that no reviewer has decided on.

    Those that cannot be read, and so not be reviewed, are passed over.

    Args:
        session: Of the database.
        task: The model.
        version: Whose accuracy is measured.
        learnt: Numbers of the pictures that it has learnt, which say nothing of others.
    """
    decisions = read_decisions(session, task.name)
    unreadable = _unreadable(session, task.name)
    numbers = {label: number for number, label in enumerate(task.labels)}
    statement = (
        select(
            PredictionRow.observation,
            PredictionRow.labels[(0, 0)].as_string(),
            PredictionRow.probability,
            PredictionRow.draw,
        )
        .where(PredictionRow.model == task.name, PredictionRow.version == version, PredictionRow.draw.is_not(None))
        .order_by(PredictionRow.draw)
        .execution_options(yield_per=_AT_ONCE)
    )
    correct, probability, draws = [], [], []
    for observation, label, drawn_with, draw in session.execute(statement):
        if observation in learnt:
            continue
        decision = decisions.get(observation)
        if decision is None and observation in unreadable:
            continue
        if decision is None:
            break
        if decision != UNDECIDED:
            correct.append(numbers.get(label) == decision)
            probability.append(drawn_with)
            draws.append(draw)
    return JudgedDraws(np.array(correct, np.bool_), np.array(probability, np.float64), np.array(draws, np.int64))
