"""Answers of versions of the past go, save those that their accuracy is told by."""

import pytest
from sqlalchemy import select

from services.trainer.feedback.tables import AnswerRow
from services.trainer.loop import pruning
from services.trainer.loop.pruning import prune_answers
from services.trainer.loop.tables import SetAnswersRow
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.rows import add_answers, add_draws, add_pictures, add_set_answers

pytestmark = pytest.mark.usefixtures("task")


def test_answers_of_the_past_go_save_of_own_draws_and_of_what_was_learnt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    pictures = add_pictures(database, 7)
    own, learnt = pictures[:2]
    add_draws(database, [own], version=1)
    add_draws(database, [pictures[2]], version=2)
    for version in (1, 2):
        add_answers(database, version, dict.fromkeys(pictures, 0))
        add_set_answers(database, version, [0, 1])
    with database.begin() as session:
        session.get_one(AnswerRow, (MODEL, 1, learnt)).learnt = True

    assert [prune_answers(database, MODEL, {1, 2}), prune_answers(database, MODEL, {2})] == [0, 5]

    with database.read() as session:
        answers = select(AnswerRow.version, AnswerRow.observation).order_by(AnswerRow.version, AnswerRow.observation)
        assert session.execute(answers).all() == [(1, own), (1, learnt), *((2, each) for each in pictures)]
        assert list(session.scalars(select(SetAnswersRow.version))) == [2]
