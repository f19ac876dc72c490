"""The last layer of a classifier, fitted to features that the layers before it gave: a softmax regression in numpy."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

PULLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""What `choose_pull` tries, in units of the features' mean squared norm; the strongest of equals is chosen."""

_JUDGED_FIFTHS = 3
_POWER_ROUNDS = 30
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer and the temperature that its results are divided by before the softmax."""

    weight: NDArray[np.float32]
    """(classes, features)."""
    bias: NDArray[np.float32] | None
    """(classes,); None where the layer has none, and then none is fitted."""
    temperature: float = 1.0


def head_probabilities(head: Head, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return what *head* makes of *features*, float32 (n, classes); rows sum to 1.

    Args:
        head: Of the same encoder as the features.
        features: (n, features), of any floating type.

    Raises:
        InvalidInput: The features are not as many as the head takes.
    """
    return _softmax(_logits(head, features)).astype(np.float32)


def fit_head(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    start: Head,
    *,
    smoothing: float = 0.0,
    pull: float = 1e-3,
    rounds: int = 300,
) -> Head:
    """Fit a head to labelled features, from *start* and pulled towards it.

    Minimised over (u, c), the layer divided by its temperature: the mean cross-entropy of the smoothed labels plus
    pull / 2 times the squared distance to the start. Both are convex and the pull makes the minimum one. Steps are
    those of Nesterov (1983), of the length 1 / L that the greatest curvature L allows, and begin anew where they lead
    uphill (O'Donoghue and Candès, "Adaptive restart for accelerated gradient schemes", 2015). Where there is a bias,
    features are centred meanwhile, as what all of them share would make L large. Equal arguments give equal bits, on
    one machine with one thread.

    Args:
        features: (n, features), of any floating type.
        labels: Below the classes of *start*, (n,).
        start: Whose classes, bias and temperature the new head has.
        smoothing: The share of each label that is spread over all classes.
        pull: Strength of the pull, 0 or more.
        rounds: Steps, each one pass over all features.

    Raises:
        InvalidInput: There are no features, or features, labels and head do not belong together.
    """
    classes = len(start.weight)
    if not len(features) or len(features) != len(labels):
        raise InvalidInput(f"{len(features)} features come with {len(labels)} labels; give one label to each, and some")
    if labels.min() < 0 or labels.max() >= classes:
        raise InvalidInput(
            f"labels go from {labels.min()} to {labels.max()}, and the head has {classes} classes; "
            "give those of its classes"
        )
    _check_width(start, features)
    columns, mean = _columns(features, centred=start.bias is not None)
    targets = np.full((len(labels), classes), smoothing / classes)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    origin = _parameters(start, mean)
    step = 1 / (_greatest_curvature(columns) + pull)

    def gradient(at: NDArray[np.float64]) -> NDArray[np.float64]:
        misses = _softmax(columns @ at.T.astype(np.float32)) - targets
        return np.asarray(misses.T.astype(np.float32) @ columns / len(columns) + pull * (at - origin))

    fitted = _descend(origin, gradient, step, rounds)
    return _head(fitted, mean, start.temperature)


def choose_pull(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    start: Head,
    *,
    smoothing: float,
    rounds: int,
    seed: int,
) -> float:
    """Return the pull with which heads, each fitted to four fifths of the samples, best foretell the others.

    Best is the highest mean log-likelihood, over three fifths one after another: a single one of some hundred samples
    often has a few that decide alone. With few samples for many features the start is worth much; with many, it only
    holds back.

    Args:
        features: As `fit_head` takes them.
        labels: As *features*.
        start: As *features*.
        smoothing: As *features*.
        rounds: Half of them, since what is compared need not be exact.
        seed: Draws the fifths.

    Raises:
        InvalidInput: As `fit_head`.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    fifths = [each for each in np.array_split(order, 5)[:_JUDGED_FIFTHS] if 0 < len(each) < len(order)] or [order]

    def likelihood(pull: float) -> float:
        total = 0.0
        for judged in fifths:
            learnt = np.setdiff1d(order, judged) if len(judged) < len(order) else order
            head = fit_head(
                features[learnt], labels[learnt], start, smoothing=smoothing, pull=pull, rounds=max(1, rounds // 2)
            )
            chosen = head_probabilities(head, features[judged])[np.arange(len(judged)), labels[judged]]
            total += float(np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).sum())
        return total

    size = float(np.square(features, dtype=np.float64).sum(axis=1).mean())
    return max((pull * size for pull in PULLS), key=likelihood)


def fit_temperature(head: Head, features: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Head:
    """Return *head* with the temperature at which the mean log-likelihood of *labels* is highest, from 0.05 to 20.

    The likelihood is concave in 1 / temperature, whose best value golden sections find. From: Guo, Pleiss, Sun and
    Weinberger, "On calibration of modern neural networks" (2017).

    Args:
        head: Its layer stays.
        features: That it was not fitted to, (n, features).
        labels: (n,).

    Raises:
        InvalidInput: There are no features, or not as many as the head takes.
    """
    if not len(features):
        raise InvalidInput("a temperature cannot be fitted to no features; give those of validation samples")
    logits = _logits(replace(head, temperature=1.0), features)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(labels)), labels]

    def loss(scale: float) -> float:
        return float((np.log(np.exp(logits * scale).sum(axis=1)) - chosen * scale).mean())

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(1 / _MOST_TEMPERATURE), math.log(1 / _LEAST_TEMPERATURE)
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(math.exp(left)) < loss(math.exp(right)) else (left, high)
    return replace(head, temperature=math.exp(-(low + high) / 2))


def _descend(
    origin: NDArray[np.float64],
    gradient: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    step: float,
    rounds: int,
) -> NDArray[np.float64]:
    here = ahead = origin
    momentum = 1.0
    for _ in range(rounds):
        slope = gradient(ahead)
        after = ahead - step * slope
        if np.vdot(slope, after - here) > 0:
            momentum = 1.0
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / faster * (after - here)
        here, momentum = after, faster
    return here


def _columns(
    features: NDArray[np.floating[Any]], *, centred: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Return the features as float32, with their mean taken off and a column of ones where there is a bias."""
    if not centred:
        return features.astype(np.float32), None
    mean = features.mean(axis=0, dtype=np.float64)
    columns = np.ones((len(features), features.shape[1] + 1), np.float32)
    np.subtract(features, mean, out=columns[:, :-1], casting="same_kind", dtype=np.float32)
    return columns, mean


def _parameters(head: Head, mean: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the layer of *head* over its temperature; the bias is that of centred features, as a last column."""
    weight = head.weight.astype(np.float64)
    if head.bias is None or mean is None:
        return weight / head.temperature
    return np.column_stack([weight, head.bias + weight @ mean]) / head.temperature


def _head(parameters: NDArray[np.float64], mean: NDArray[np.float64] | None, temperature: float) -> Head:
    """Undo `_parameters`."""
    layer = parameters * temperature
    if mean is None:
        return Head(layer.astype(np.float32), None, temperature)
    weight, bias = layer[:, :-1], layer[:, -1]
    return Head(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), temperature)


def _greatest_curvature(columns: NDArray[np.float32]) -> float:
    """Return a bound on the curvature of the mean cross-entropy: half the greatest eigenvalue of the mean of x xᵀ.

    The half bounds the softmax's own curvature (Böhning 1992). Power iterations come from below: a tenth more.
    """
    direction: NDArray[np.float32] = np.ones(columns.shape[1], np.float32)
    size = 0.0
    for _ in range(_POWER_ROUNDS):
        direction = columns.T @ (columns @ direction)
        size = float(np.linalg.norm(direction))
        if not size:
            return 1.0
        direction /= np.float32(size)
    return 0.5 * 1.1 * size / len(columns)


def _logits(head: Head, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    _check_width(head, features)
    logits = features.astype(np.float32) @ head.weight.T
    if head.bias is not None:
        logits += head.bias
    return np.asarray(logits / np.float32(head.temperature))


def _check_width(head: Head, features: NDArray[np.floating[Any]]) -> None:
    if features.ndim != 2 or features.shape[1] != head.weight.shape[1]:
        raise InvalidInput(
            f"the features have shape {features.shape}, and the head takes {head.weight.shape[1]} of each sample; "
            "give those of its own encoder"
        )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
