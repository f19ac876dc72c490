"""Nearest neighbours by cosine, and whether they bear a label out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_QUERY_ROWS, _INDEX_ROWS = 256, 8192
"""Similarities held at a time: 8 MiB, and some copies of them."""


def nearest(
    queries: NDArray[np.floating[Any]], index: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the *k* rows of *index* that are nearest each query by cosine, the nearest first.

    Of equal ones the earlier comes first. A row of zeros has similarity 0 to all. Memory beyond the results is bounded.

    Args:
        queries: (n, features), of any floating type.
        index: (m, features).
        k: 1 or more; where m is less, all m are returned.

    Returns:
        Positions in *index*, int64, and similarities from -1 to 1, float32, both (n, min(k, m)).

    Raises:
        InvalidInput: Queries and index have not the same number of features, or *k* is below 1.
    """
    if k < 1:
        raise InvalidInput(f"{k} neighbours are asked for; give 1 or more")
    if queries.ndim != 2 or index.ndim != 2 or queries.shape[1] != index.shape[1]:
        raise InvalidInput(
            f"queries of shape {queries.shape} do not fit an index of shape {index.shape}; give both from one encoder"
        )
    found = min(k, len(index))
    positions = np.empty((len(queries), found), np.int64)
    similarity = np.empty((len(queries), found), np.float32)
    for begin in range(0, len(queries), _QUERY_ROWS):
        rows = slice(begin, begin + _QUERY_ROWS)
        positions[rows], similarity[rows] = _nearest_of_block(_unit(queries[rows]), index, found)
    return positions, similarity


def label_lift(
    labels: NDArray[np.int64], neighbour_labels: NDArray[np.int64], class_counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return how much more frequent each label is among its neighbours than in the whole index, (n,).

    1 is as frequent as by chance; a label that nothing in the index has gets 0.

    Args:
        labels: To be borne out, (n,).
        neighbour_labels: Those of each one's neighbours, (n, k).
        class_counts: Members of each class in the index, (classes,).
    """
    among = (neighbour_labels == labels[:, None]).mean(axis=1)
    share = class_counts[labels] / max(1, class_counts.sum())
    return np.asarray(np.divide(among, share, out=np.zeros(len(labels)), where=share > 0))


def _nearest_of_block(
    queries: NDArray[np.float32], index: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    positions = np.empty((len(queries), 0), np.int64)
    similarity = np.empty((len(queries), 0), np.float32)
    for begin in range(0, len(index), _INDEX_ROWS):
        more = queries @ _unit(index[begin : begin + _INDEX_ROWS]).T
        numbers = np.broadcast_to(np.arange(begin, begin + more.shape[1]), more.shape)
        positions, similarity = _best(
            np.concatenate([positions, numbers], axis=1), np.concatenate([similarity, more], axis=1), k
        )
    return positions, similarity


def _best(
    positions: NDArray[np.int64], similarity: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    count = similarity.shape[1]
    if count > k:
        # Of those as near as the k-th, more than k where there are ties, the first k are kept.
        rows, columns = np.nonzero(similarity >= np.partition(similarity, count - k, axis=1)[:, count - k, None])
    else:
        rows, columns = np.indices(similarity.shape).reshape(2, -1)
        k = count
    order = np.lexsort((columns, -similarity[rows, columns], rows))
    begins = np.searchsorted(rows, np.arange(len(similarity)))
    kept = columns[order[begins[:, None] + np.arange(k)]]
    return np.take_along_axis(positions, kept, axis=1), np.take_along_axis(similarity, kept, axis=1)


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    single = rows.astype(np.float32)
    lengths = np.linalg.norm(single, axis=1, keepdims=True)
    return np.asarray(np.divide(single, lengths, out=np.zeros_like(single), where=lengths > 0))
