import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.observing import Role
from services.trainer.feedback.roles import role_of


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_so_many_contents_judge_as_the_policy_says(share: float) -> None:
    judging = np.mean([role_of(each, "salt", share) is Role.JUDGE for each in digests(4000)])

    assert abs(judging - share) < 4 * np.sqrt(share * (1 - share) / 4000)


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_no_content_away_from_those_that_judge(digest: str, one: float, other: float) -> None:
    if role_of(digest, "salt", min(one, other)) is Role.JUDGE:
        assert role_of(digest, "salt", max(one, other)) is Role.JUDGE


def test_roles_of_another_salt_have_nothing_to_do_with_these() -> None:
    both = [(role_of(each, "one", 0.5), role_of(each, "two", 0.5)) for each in digests(2000)]

    assert abs(np.mean([one is two for one, two in both]) - 0.5) < 0.06


def test_none_and_all() -> None:
    assert {role_of(each, "salt", 0.0) for each in digests(50)} == {Role.TRAIN}
    assert {role_of(each, "salt", 1.0) for each in digests(50)} == {Role.JUDGE}
