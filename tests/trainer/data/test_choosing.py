"""Which samples a snapshot has: decided by contents, not by numbers, times or the order of arrival."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.choosing import (
    Base,
    Candidate,
    Caps,
    choose_validation,
    content_lines,
    draw_base,
    snapshot_digest,
    within_caps,
)

CLASSES = 3
LABELS = ("cat", "dog\n", "cow")


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def candidate(number: int, label: int, *givers: str) -> Candidate:
    return Candidate(content(number), label, frozenset(givers))


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    numbers = draw(st.lists(st.integers(0, 10_000), unique=True, max_size=80))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    givers = ("ann", "bob", "mallory")
    return [
        candidate(number, int(generator.integers(CLASSES)), *(each for each in givers if generator.random() < 0.4))
        for number in numbers
    ]


caps = st.builds(Caps, share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), least=st.integers(1, 8))
bases = st.lists(st.integers(0, CLASSES - 1), max_size=60).map(
    lambda classes: Base("slice", "sha256:0", np.array(classes, np.int64))
)


def counts(base: Base) -> np.ndarray:
    return np.bincount(base.classes, minlength=CLASSES)


@given(candidates(), caps, bases, st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(found, limits, base, random) -> None:  # type: ignore[no-untyped-def]
    mixed = list(found)
    random.shuffle(mixed)

    one, other = (within_caps(each, counts(base), limits, lambda new: 2 * new) for each in (found, mixed))

    assert set(one) == set(other)
    assert choose_validation(one) == choose_validation(other)
    lines = [content_lines(each, choose_validation(each), LABELS) for each in (one, other)]
    assert lines[0] == lines[1]
    assert len({line.split()[-1] for line in lines[0]}) == len(one)


@given(candidates(), caps, bases, st.integers(0, 5))
def test_nobody_without_trust_has_more_of_a_class_than_the_caps_let(
    found: list[Candidate], limits: Caps, base: Base, per_new: int
) -> None:
    alone = [Candidate(each.pixel_digest, each.label, frozenset(sorted(each.givers)[:1])) for each in found]

    kept = within_caps(alone, counts(base), limits, lambda new: round(per_new * new))

    replayed = counts(base) * min(1.0, per_new * len(kept) / max(1, len(base.classes)))
    sizes = replayed + np.bincount([each.label for each in kept], minlength=CLASSES)
    for (giver, label), count in Counter((giver, each.label) for each in kept for giver in each.givers).items():
        assert count <= max(limits.least, limits.share * sizes[label] + 1e-6), giver
    assert {each for each in alone if not each.givers} <= set(kept)


def test_what_another_says_too_is_kept_where_he_may_have_it() -> None:
    flood = [candidate(number, 0, "mallory") for number in range(50)]
    shared = [candidate(number, 0, "mallory", "ann") for number in range(50, 60)]

    kept = within_caps([*flood, *shared], np.zeros(CLASSES, np.int64), Caps(0.1, 12), lambda new: 0)

    assert set(shared) <= set(kept)
    assert sum(each.givers == {"mallory"} for each in kept) <= 12


def test_a_flood_raises_no_limit_of_its_own() -> None:
    base = np.array([100, 100, 100])
    few, many = (
        within_caps(
            [candidate(number, 0, "mallory") for number in range(count)], base, Caps(0.1, 5), lambda new: 100 * new
        )
        for count in (40, 4000)
    )

    assert len(few) == len(many) == 11  # of 111


@given(candidates())
def test_a_class_with_two_samples_has_one_in_each_part(found: list[Candidate]) -> None:
    validation = choose_validation(found)

    for label, size in Counter(each.label for each in found).items():
        judged = sum(each.pixel_digest in validation for each in found if each.label == label)
        assert size < 2 or 0 < judged < size


def test_about_a_tenth_is_validated_on_and_stays_there_when_more_come() -> None:
    few, many = ([candidate(number, 0) for number in range(count)] for count in (1000, 2000))

    before, after = choose_validation(few), choose_validation(many)

    assert 70 < len(before) < 130
    assert before == {each.pixel_digest for each in few} & after


@given(bases, candidates(), st.sampled_from([0.0, 0.5, 3.0, 100.0]))
def test_the_base_is_drawn_by_contents_and_fills_classes_that_would_be_empty(
    base: Base, new: list[Candidate], per_new: float
) -> None:
    drawn = draw_base(base, round(per_new * len(new)), new, "a0")

    assert (
        drawn.tolist() == draw_base(base, round(per_new * len(new)), new, "a0").tolist() == sorted(set(drawn.tolist()))
    )
    assert {each.label for each in new} | set(base.classes[drawn].tolist()) >= set(base.classes.tolist())
    if new:
        wanted = min(len(base.classes), round(per_new * len(new)))
        assert wanted <= len(drawn) <= wanted + CLASSES
    else:
        assert len(drawn) == len(base.classes)


def test_another_seed_draws_others() -> None:
    base = Base("slice", "sha256:0", np.zeros(1000, np.int64))
    new = [candidate(number, 0) for number in range(10)]

    draws = [tuple(draw_base(base, 5 * len(new), new, seed)) for seed in ("1", "2")]

    assert len(draws[0]) == len(draws[1]) == 50
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "birds"}, {"base": "other"}, {"base_digest": "sha256:1"}, {"drawn": [1, 2]},
        {"lines": ["train cat 00"]}, {"lines": []},
    ],
)  # fmt: skip
def test_the_digest_is_of_all_that_is_learnt_from(changed: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "model": "pets", "base": "slice", "base_digest": "sha256:0", "drawn": [1], "lines": ["validation cat 00"],
    }  # fmt: skip

    assert snapshot_digest(**fields) != snapshot_digest(**(fields | changed))  # type: ignore[arg-type]
