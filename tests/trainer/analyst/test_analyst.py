"""When the analyst of a model looks at what has come."""

from collections.abc import Callable

import pytest

from services.trainer.analyst.analyst import LOOK_SECONDS, Analyst
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.surroundings import AWAY_SECONDS
from services.trainer.analyst.work import Embed
from services.trainer.data.samples import Samples
from services.trainer.feedback.tables import EmbeddingRow
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import CAT, Users, work_through


def test_pictures_that_only_came_wait_for_more_until_somebody_speaks_of_one(
    make_analyst: Callable[..., Analyst],
    encoder: OpenedEncoder,
    users: Users,
    slice_samples: tuple[Samples, Samples],
) -> None:
    analyst = make_analyst(clock=lambda: 0.0)
    work_through(analyst)
    numbers = users.send(slice_samples[1].images[:3])
    assert analyst.find() is None

    users.say(numbers[1:2], CAT, "anna")

    work = analyst.find()
    assert isinstance(work, Embed)
    assert set(work.observations) == set(numbers)


@pytest.mark.parametrize("seconds", [LOOK_SECONDS, AWAY_SECONDS])
def test_pictures_that_only_came_are_looked_at_when_some_time_has_passed_less_where_inference_is_away(
    make_analyst: Callable[..., Analyst],
    encoder: OpenedEncoder,
    users: Users,
    slice_samples: tuple[Samples, Samples],
    seconds: float,
) -> None:
    now = 0.0
    analyst = make_analyst(clock=lambda: now)  # nothing listens where it expects inference
    work_through(analyst)
    numbers = users.send(slice_samples[1].images[:3])
    assert analyst.find() is None

    now += seconds

    assert analyst.find() == Embed(encoder.digest, tuple(numbers))


def test_an_analyst_ends_only_when_what_came_last_is_looked_at(
    make_analyst: Callable[..., Analyst],
    encoder: OpenedEncoder,
    database: Database,
    users: Users,
    slice_samples: tuple[Samples, Samples],
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += AWAY_SECONDS / 8
        return now

    analyst = make_analyst(clock=clock)
    work_through(analyst)
    users.send(slice_samples[1].images[:3])
    analyst.run(idle_seconds=0.0)

    with database.read() as session:
        assert session.query(EmbeddingRow).where(EmbeddingRow.encoder == encoder.digest).count() == 3
