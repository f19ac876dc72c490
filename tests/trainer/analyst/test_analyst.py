"""When the analyst of a model looks at what has come."""

from collections.abc import Callable

from services.trainer.analyst.analyst import LOOK_SECONDS, Analyst
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.work import Embed
from services.trainer.data.samples import Samples
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


def test_pictures_that_only_came_are_looked_at_when_some_time_has_passed(
    make_analyst: Callable[..., Analyst],
    encoder: OpenedEncoder,
    users: Users,
    slice_samples: tuple[Samples, Samples],
) -> None:
    now = 0.0
    analyst = make_analyst(clock=lambda: now)
    work_through(analyst)
    numbers = users.send(slice_samples[1].images[:3])
    assert analyst.find() is None

    now += LOOK_SECONDS

    assert analyst.find() == Embed(encoder.digest, tuple(numbers))
