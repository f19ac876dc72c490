"""Samples are looked at together: what is doubted is held up, and let go again when there is no more reason."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from sqlalchemy import select

from services.trainer.analyst.analyst import Analyst
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.figures import last_figure
from services.trainer.analyst.stopping import Stopped
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.observing import State
from services.trainer.data.samples import Samples
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.reliability import read_reliability
from services.trainer.feedback.tables import FindingRow
from services.trainer.loop.kinds import SCREENING
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import CAT, DOG, HORSE, MODEL, Users, observation, of_class, work_through

THREE = ("ann", "ben", "cid")


def findings(database: Database, kind: str) -> list[int]:
    with database.read() as session:
        statement = select(FindingRow.observation).where(FindingRow.kind == kind).order_by(FindingRow.observation)
        return list(session.scalars(statement))


@pytest.mark.usefixtures("encoder")
def test_a_wrong_label_is_held_up_and_the_right_one_let_go(
    database: Database,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    test = slice_samples[1]
    horses, cats = users.send(of_class(test, HORSE, 20)), users.send(of_class(test, CAT, 10))
    mistaken, right = horses[:5], horses[5:]
    users.say(right, HORSE, *THREE)
    users.say(cats, CAT, *THREE)
    users.say(mistaken, DOG, *THREE)  # against the neighbours, but three of them
    work_through(make_analyst())

    found = findings(database, "LIKELY_WRONG")
    assert len(set(found) & set(mistaken)) >= 2
    assert len(set(found) - set(mistaken)) <= 1
    for number in found:
        row = observation(database, number)
        assert (row.state, row.reason, row.sample) == (State.QUARANTINED, "LIKELY_WRONG", None)
    assert np.mean([observation(database, number).state == State.ACCEPTED for number in right + cats]) > 0.9

    users.say(mistaken, HORSE, *THREE)
    with database.begin() as session:  # as if a minute had passed
        figure = last_figure(session, MODEL, SCREENING)
        assert figure is not None
        figure.time = "2026-01-02T03:04:05.000Z"
    work_through(make_analyst())

    assert not set(findings(database, "LIKELY_WRONG")) & set(mistaken)
    assert {observation(database, number).state for number in mistaken} == {State.ACCEPTED}


@pytest.mark.usefixtures("encoder")
def test_who_does_harm_is_found(
    database: Database,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.trainer.analyst.suspicion.LEAST_SURE", 1.1)  # no single label is doubted
    test = slice_samples[1]
    judged = {label: users.send(of_class(test, label, 25, 50)) for label in (CAT, HORSE)}
    for label, numbers in judged.items():
        users.say(numbers, label, "rex", trusted=True)
    honest, lies = users.send(of_class(test, HORSE, 22)), users.send(of_class(test, CAT, 50))
    users.say(honest, HORSE, "ann")
    users.say(lies, DOG, "liar", "other liar", "third liar")
    work_through(make_analyst())

    assert findings(database, "CONTRIBUTOR_HARMS") == lies
    assert {observation(database, number).reason for number in lies} == {"CONTRIBUTOR_HARMS"}
    with database.read() as session:
        figure = last_figure(session, MODEL, SCREENING)
        assert read_reliability(session, MODEL, LABELS, TrustPolicy()).harmful == {"liar"}  # whose samples they were
    assert figure is not None
    assert "liar" not in str(figure.values) + str(figure.window)


def test_a_long_piece_of_work_is_broken_off(
    database: Database,
    encoder: OpenedEncoder,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    make_analyst: Callable[..., Analyst],
) -> None:
    users.send(slice_samples[1].images[:3])
    analyst = make_analyst()
    assert analyst.step()  # embeds
    stop: threading.Event = analyst._stop
    stop.set()

    with pytest.raises(Stopped):
        analyst.step()  # would embed the base set
    analyst.run(60)  # returns at once
