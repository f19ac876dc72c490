"""Room for bodies."""

import pytest

from gateway.bodies import BodyBudget
from services.common.errors import Overloaded


def test_what_goes_beyond_the_room_for_all_bodies_is_refused_until_others_are_done():
    budget = BodyBudget(100)
    with budget.holding() as take:
        take(60)
        with budget.holding() as take_other:
            take_other(30)
            with pytest.raises(Overloaded, match=r"take 60 of 100 bytes \(GATEWAY_MAX_BODIES_BYTES\)"):
                take_other(11)
        take(40)

    with budget.holding() as take:
        take(100)


def test_a_request_that_fails_gives_its_room_back():
    budget = BodyBudget(100)

    def fail() -> None:
        with budget.holding() as take:
            take(100)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()

    with budget.holding() as take:
        take(100)
