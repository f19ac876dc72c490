import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics import neighbours
from services.trainer.statistics.neighbours import label_lift, nearest


def cosines(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(index, axis=1)
    return np.asarray(queries @ index.T / lengths)


@pytest.mark.parametrize("rows", [(1024, 8192), (7, 11)])
def test_blocks_find_what_one_product_finds(monkeypatch: pytest.MonkeyPatch, rows: tuple[int, int]) -> None:
    monkeypatch.setattr(neighbours, "_QUERY_ROWS", rows[0])
    monkeypatch.setattr(neighbours, "_INDEX_ROWS", rows[1])
    random = np.random.default_rng(0)
    queries, index = random.normal(size=(30, 8)), random.normal(size=(100, 8))
    expected = cosines(queries, index)

    positions, similarity = nearest(queries, index.astype(np.float16), 5)

    assert np.array_equal(positions[:, 0], expected.argmax(axis=1))
    assert np.allclose(similarity, -np.sort(-expected, axis=1)[:, :5], atol=0.002)
    assert np.allclose(np.take_along_axis(expected, positions, axis=1), similarity, atol=0.002)


def test_length_does_not_count() -> None:
    index = np.array([[100.0, 0.0], [0.1, 0.1], [0.0, 3.0]])

    positions, similarity = nearest(np.array([[1.0, 1.1]]), index, 2)

    assert positions.tolist() == [[1, 2]]
    assert similarity[0, 0] == pytest.approx(1, abs=0.01)


def test_of_equal_ones_the_earlier_comes_first_in_whatever_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_INDEX_ROWS", 4)
    index = np.tile([[3.0, 4.0]], (30, 1))

    positions, _ = nearest(index[:1], index, 7)

    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_zeros_are_near_nothing() -> None:
    positions, similarity = nearest(np.zeros((1, 2)), np.array([[1.0, 0.0], [0.0, 0.0]]), 2)

    assert positions.tolist() == [[0, 1]]
    assert similarity.tolist() == [[0, 0]]


def test_a_short_index_gives_what_it_has() -> None:
    assert nearest(np.ones((2, 3)), np.ones((1, 3)), 15)[0].tolist() == [[0], [0]]
    assert nearest(np.ones((2, 3)), np.ones((0, 3)), 15)[0].shape == (2, 0)


def test_lift_says_how_far_neighbours_bear_a_label_out() -> None:
    counts = np.array([900, 100, 0])
    around = np.array([[0] * 9 + [1], [0] * 5 + [1] * 5, [0] * 10, [0] * 10])

    lifts = label_lift(np.array([0, 1, 1, 2]), around, counts)

    assert lifts.tolist() == pytest.approx([1.0, 5.0, 0.0, 0.0])


@pytest.mark.parametrize(("width", "k"), [(4, 1), (3, 0)])
def test_what_does_not_fit_the_index_is_refused(width: int, k: int) -> None:
    with pytest.raises(InvalidInput, match="; give"):
        nearest(np.ones((1, width)), np.ones((5, 3)), k)
