"""Has the traffic changed? Shares of classes, answers one dimension at a time, and embeddings as a whole."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_LEAST_RESOLUTION = 0.1
"""Below it, noise in the shares of predictions is made more than ten times larger by the inversion."""
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class LabelShift:
    """Shares of true classes in the traffic over those in the hold-out, each (classes,), float64."""

    weights: NDArray[np.float64]
    low: NDArray[np.float64]
    """Lower ends of 95 % intervals."""
    high: NDArray[np.float64]


@dataclass(frozen=True)
class ShiftedDimension:
    """One class whose probability is spread otherwise than it was."""

    dimension: int
    distance: float
    """Between the two distribution functions, at most (Kolmogorov and Smirnov)."""
    p_value: float


def label_shift(
    confusion: NDArray[np.int64], predicted_counts: NDArray[np.int64], *, samples: int = 200, seed: int = 0
) -> LabelShift | None:
    """Return by how much classes have become more frequent, from predictions alone; None where those cannot tell.

    Holds where classes look as they did and only their shares change: then the shares of predictions are the confusion
    times the shares of classes, which is solved for. Negative shares are cut off. The intervals are those of a
    bootstrap over both tables. Predictions cannot tell where the confusion of shares, given the class, has a singular
    value below 0.1: the classifier hardly tells some classes apart.

    From: Lipton, Wang and Smola, "Detecting and correcting for label shift with black box predictors" (2018).

    Args:
        confusion: Counts on the hold-out, (classes, classes): row is the true label, column the predicted one.
        predicted_counts: Predictions of each class in the traffic, (classes,).
        samples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InvalidInput: A class has nothing in the hold-out, or there are no predictions.
    """
    members = confusion.sum(axis=1)
    if not members.all():
        raise InvalidInput(
            f"class {int(members.argmin())} has no sample in the hold-out, so that its predictions cannot be read; "
            "add one at least"
        )
    count = int(predicted_counts.sum())
    if not count:
        raise InvalidInput("there are no predictions to find shares of classes from; give those of some draws")
    recall = confusion / members[:, None]
    if np.linalg.svd(recall, compute_uv=False)[-1] < _LEAST_RESOLUTION:
        return None
    random = np.random.default_rng(seed)
    predicted = predicted_counts / count
    recalls = np.stack([random.multinomial(int(n), row, samples) / n for n, row in zip(members, recall, strict=True)])
    drawn = random.multinomial(count, predicted, samples) / count
    prior = members / members.sum()
    weights = _class_shares(recall[None], predicted[None])[0] / prior
    spread = _class_shares(recalls.transpose(1, 0, 2), drawn) / prior
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    return LabelShift(weights, low, high)


def count_shift(reference: NDArray[np.int64], recent: NDArray[np.int64]) -> float:
    """Return the p-value of the chi-squared test that two rows of counts have equal shares.

    Args:
        reference: Counts of each class, (classes,).
        recent: As *reference*. A class that neither has is left out.
    """
    table = np.stack([reference, recent])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return _chi_squared_tail(float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1)


def softmax_shift(
    reference: NDArray[np.floating[Any]], recent: NDArray[np.floating[Any]], level: float
) -> list[ShiftedDimension]:
    """Return the dimensions that differ by two-sample Kolmogorov-Smirnov tests, the surest first.

    The chance that any is returned where none differs is *level* at most (Holm 1979). Answers of a classifier are the
    best place to look: Rabanser, Günnemann and Lipton, "Failing loudly" (2019). P-values are those of Kolmogorov's
    series with the correction of Stephens (1970); ties make them larger.

    Args:
        reference: Probabilities of answers as they should be, (n, classes).
        recent: Probabilities of recent answers, (m, classes).
        level: Of all tests together.

    Raises:
        InvalidInput: One of the two is empty, or they have different classes.
    """
    _check_pair(reference, recent)
    distances = [_distance(reference[:, each], recent[:, each]) for each in range(reference.shape[1])]
    effective = len(reference) * len(recent) / (len(reference) + len(recent))
    tests = sorted(
        (
            ShiftedDimension(each, distance, _kolmogorov_tail(distance, effective))
            for each, distance in enumerate(distances)
        ),
        key=lambda test: test.p_value,
    )
    found = []
    for passed, test in enumerate(tests):
        if test.p_value > level / (len(tests) - passed):
            break
        found.append(test)
    return found


def embedding_shift(
    reference: NDArray[np.floating[Any]], recent: NDArray[np.floating[Any]], seed: int, permutations: int
) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy of two sets of embeddings in linear time, and its p-value.

    Rows are paired at random; two pairs (x, y) and (x', y') give h = k(x, x') + k(y, y') - k(x, y') - k(x', y) with a
    Gaussian kernel of the median distance, and the mean of h is the discrepancy (Gretton et al., "A kernel two-sample
    test", 2012, section 6). Exchanging x and y turns the sign of h and leaves the median, so that random signs are
    permutations: the test is exact for whatever number of rows.

    Args:
        reference: (n, features).
        recent: (m, features); of the longer of the two, as many rows are drawn as the shorter has.
        seed: Of pairs and signs.
        permutations: 1 / (permutations + 1) is the least p-value; for a level a it must be more than 1 / a.

    Raises:
        InvalidInput: One of the two is empty, or they have different features.
    """
    _check_pair(reference, recent)
    random = np.random.default_rng(seed)
    pairs = min(len(reference), len(recent)) // 2
    if not pairs:
        return 0.0, 1.0
    first, second = (
        rows[random.permutation(len(rows))[: 2 * pairs]].astype(np.float64).reshape(2, pairs, -1)
        for rows in (reference, recent)
    )
    (x, other_x), (y, other_y) = first, second
    squares = np.stack(
        [((a - b) ** 2).sum(axis=1) for a, b in ((x, other_x), (y, other_y), (x, other_y), (other_x, y))]
    )
    kernel = np.exp(-squares / max(float(np.median(squares)), np.finfo(np.float64).tiny))
    h = kernel[0] + kernel[1] - kernel[2] - kernel[3]
    as_high = 0
    rows_at_once = max(1, _BLOCK // pairs)
    for begin in range(0, permutations, rows_at_once):
        signs = random.integers(0, 2, (min(rows_at_once, permutations - begin), pairs), np.int8)
        as_high += int(((2.0 * signs - 1) @ h >= h.sum() - 1e-12).sum())
    return float(h.mean()), (1 + as_high) / (1 + permutations)


def _class_shares(recall: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve predicted = recallᵀ shares, for (n, classes, classes) and (n, classes)."""
    inverse = np.linalg.pinv(recall.transpose(0, 2, 1))
    shares = np.maximum(np.einsum("nij,nj->ni", inverse, predicted), 0)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _distance(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """Return how far the two empirical distribution functions lie apart at most."""
    first, second = np.sort(first), np.sort(second)
    values = np.concatenate([first, second])
    below = [np.searchsorted(each, values, side="right") / len(each) for each in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def _kolmogorov_tail(distance: float, effective: float) -> float:
    root = math.sqrt(effective)
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:
        return 1.0  # to twelve digits, where the series would need many terms
    return min(1.0, max(0.0, 2 * sum((1 if k % 2 else -1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 51))))


def _chi_squared_tail(value: float, freedom: int) -> float:
    """Return the chance of *value* or more, by the finite sums for whole degrees (Abramowitz and Stegun 26.4.4, 5)."""
    half = value / 2
    if half == 0:
        return 1.0
    odd = freedom % 2
    tail = math.erfc(math.sqrt(half)) if odd else 0.0
    powers = [k - 0.5 if odd else float(k) for k in range(odd, (freedom + odd) // 2)]
    return min(1.0, tail + sum(math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers))


def _check_pair(reference: NDArray[np.floating[Any]], recent: NDArray[np.floating[Any]]) -> None:
    if not len(reference) or not len(recent) or reference.shape[1] != recent.shape[1]:
        raise InvalidInput(
            f"rows of shape {recent.shape} cannot be compared with a reference of shape {reference.shape}; "
            "give some of each, from one model"
        )
