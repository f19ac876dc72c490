"""Rows as the other parts of the trainer write them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, VoteRow
from services.trainer.feedback.tables import AnswerRow, ContributorRow, LoopModelRow
from services.trainer.loop.tables import FigureRow, SetAnswersRow
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import LABELS, MODEL, SPEC

TIME = "2026-01-01T00:00:00.000Z"
REVIEWER = "reviewer"
SET = "cifar10-slice"
"""Whose test part is the hold-out."""
SET_DIGEST = "sha256:" + "5" * 64


def add_pictures(database: Database, count: int, role: Role = Role.JUDGE, state: State = State.CAPTURED) -> list[int]:
    """Add pictures and return their numbers."""
    with database.begin(alone=True) as session:
        begin = _next(session, ObservationRow.number)
        changed = _next(session, ObservationRow.changed_number)
        for number in range(begin, begin + count):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            session.add(
                ObservationRow(
                    number=number, model=MODEL, content_digest=digest, pixel_digest=digest, size_bytes=100, width=4,
                    height=4, format="PNG", orientation=1, role=role, state=state, reason="", detail="", label=None,
                    label_probability=0.0, sample=None, changed_number=changed + number - begin, stale=False,
                    create_time=TIME,
                )
            )  # fmt: skip
    return list(range(begin, begin + count))


def add_draws(
    database: Database,
    pictures: Iterable[int],
    answer: int = 0,
    version: int = 1,
    share: float = 0.1,
    time: str = TIME,
) -> None:
    """Let *version* have answered each of *pictures* with a label, drawn at random."""
    with database.begin(alone=True) as session:
        loop = session.get(LoopModelRow, MODEL)
        draw = max(_next(session, PredictionRow.draw), loop.last_draw + 1 if loop is not None else 0)
        for number in pictures:
            session.add(
                PredictionRow(
                    id=f"{draw:032x}", model=MODEL, version=version, generation=1, preprocess_digest=SPEC.digest,
                    observation=number, contributor="anonymous", strategy="RANDOM", probability=share, draw=draw,
                    labels=[[LABELS[answer], 0.9]], time=time,
                )
            )  # fmt: skip
            draw += 1
        if loop is not None:
            loop.last_draw = draw - 1


def add_answers(database: Database, version: int, answers: Mapping[int, int], *, learnt: bool = False) -> None:
    """Let *version* answer pictures, by their numbers, with the numbers of labels; it has learnt them or not."""
    with database.begin() as session:
        for number, best in answers.items():
            session.merge(
                AnswerRow(
                    model=MODEL, version=version, observation=number, best=best, best_probability=0.9,
                    probabilities=_probabilities([best]), learnt=learnt,
                )
            )  # fmt: skip


def add_review(
    database: Database,
    picture: int,
    label: int | None,
    verdict: VoteKind = VoteKind.LABEL,
    *,
    by: str = REVIEWER,
    trusted: bool = True,
    blocked: bool = False,
) -> None:
    """Let somebody say what a picture is."""
    add_reviews(database, {picture: label}, verdict, by=by, trusted=trusted, blocked=blocked)


def add_reviews(
    database: Database,
    labels: Mapping[int, int | None],
    verdict: VoteKind = VoteKind.LABEL,
    *,
    by: str = REVIEWER,
    trusted: bool = True,
    blocked: bool = False,
) -> None:
    """Let somebody say what pictures are, by their numbers."""
    with database.begin(alone=True) as session:
        session.merge(ContributorRow(name=by, trusted=trusted, blocked=blocked, create_time=TIME))
        changed = _next(session, ObservationRow.changed_number)
        for offset, (picture, label) in enumerate(labels.items()):
            session.add(
                VoteRow(
                    observation=picture, prediction=None, contributor=by, verdict=verdict, label=label,
                    proposal="mauve" if verdict is VoteKind.PROPOSAL else "", agreed=None, trusted=trusted, comment="",
                    time=TIME,
                )
            )  # fmt: skip
            session.get_one(ObservationRow, picture).changed_number = changed + offset


def add_samples(database: Database, count: int, role: Role = Role.TRAIN) -> list[int]:
    """Add accepted samples and return the numbers of their pictures."""
    pictures = add_pictures(database, count, role, State.ACCEPTED)
    with database.begin(alone=True) as session:
        for number in pictures:
            picture = session.get_one(ObservationRow, number)
            sample = SampleRow(
                model=MODEL, content_digest=picture.content_digest, pixel_digest=picture.pixel_digest, label=0, width=4,
                height=4, format="PNG", orientation=1, client_id="", source="feedback", create_time=TIME,
                contributor=REVIEWER, observation=number,
            )  # fmt: skip
            session.add(sample)
            session.flush()
            picture.sample, picture.label = sample.number, 0
    return pictures


def add_holdout(database: Database, labels: Sequence[int], order: Sequence[int] | None = None) -> None:
    """Say what the hold-out is."""
    with database.begin() as session:
        session.add(
            FigureRow(
                model=MODEL, kind="holdout", number=1, window={"set": SET, "digest": SET_DIGEST},
                values={"labels": list(labels), "order": list(order or range(len(labels)))}, time=TIME,
            )
        )  # fmt: skip


def add_set_answers(database: Database, version: int, answers: Sequence[int]) -> None:
    """Let *version* answer the hold-out."""
    with database.begin() as session:
        session.merge(
            SetAnswersRow(
                model=MODEL, version=version, set_digest=SET_DIGEST, best=np.array(answers, "<i2").tobytes(),
                probabilities=_probabilities(answers),
            )
        )  # fmt: skip


def add_figure(database: Database, kind: str, number: int, window: Mapping[str, int], **values: object) -> None:
    """Let an analyst have measured something; each number an hour after the one before."""
    time = (datetime.fromisoformat(TIME) + timedelta(hours=number)).isoformat(timespec="milliseconds")
    with database.begin() as session:
        session.add(
            FigureRow(
                model=MODEL, kind=kind, number=number, window={"version": 1, "first": 1, **window}, values=values,
                time=time.replace("+00:00", "Z"),
            )
        )  # fmt: skip


def _probabilities(answers: Sequence[int]) -> bytes:
    rows = np.full((len(answers), len(LABELS)), 0.05, "<f2")
    rows[np.arange(len(answers)), list(answers)] = 0.9
    return rows.tobytes()


def _next(session: Session, column: object) -> int:
    return (session.scalar(select(func.max(column))) or 0) + 1  # type: ignore[arg-type]
