"""How soon the detectors of drift see that traffic has changed, and how often they cry wolf, beside ADWIN.

Traffic is drawn from the slice's test pictures, which the starter has not learnt, and answered by the starter. From one
draw on pictures are spoilt, or other classes come. The product's detectors look as the analyst does, with its policy:
windowed tests of answers, features and shares of answers some times a day, and the detector of errors at every judged
draw, all of them judged here at once. ADWIN (Bifet and Gavaldà 2007, as river has it) gets the same errors, and the
probabilities of the best labels; once with river's own delta, once with one that is as often wrong as our detector of
errors. The unit of a delay is a draw.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from river.drift import ADWIN

from aimass.starter import VERSION
from services.common.manifest import GRAPH_FILE
from services.trainer.analyst.drift import DETECTORS, alarm_level
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.samples import Samples
from services.trainer.data.slices import read_slice
from services.trainer.evaluation.robustness import corrupt
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.statistics.detectors import ErrorDetector, run_length
from services.trainer.statistics.heads import Head, head_probabilities
from services.trainer.statistics.shift import count_shift, embedding_shift, softmax_shift

ALARM = AlarmPolicy()
DRAWS_PER_LOOK = 50
DRAWS_PER_DAY = DRAWS_PER_LOOK * ALARM.looks_per_day
MONTH_DAYS = 365.25 / 12
CHANGE = 2 * ALARM.window
"""Draw at which traffic changes: the first at which two windows are full."""
MOST_DELAY = 2000
"""Draws after which a change counts as not seen."""
EAGER = 0.05
"""Delta with which ADWIN raises about as many false alarms as the detector of errors may."""
SPOILT: Mapping[str, Sequence[int]] = {
    "gaussian_blur": (1, 2, 3),
    "brightness": (3, 5),
    "contrast": (1, 2, 3),
    "jpeg": (1, 3),
    "shot_noise": (1,),
}
"""Severities of corruptions: those that cost the starter little, and more."""
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


@dataclass(frozen=True, eq=False)
class Answers:
    """What the starter makes of pictures, draw by draw or picture by picture."""

    labels: NDArray[np.int64]
    """The true ones."""
    features: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def errors(self) -> NDArray[np.bool_]:
        """Which answers are wrong."""
        return np.asarray(self.probabilities.argmax(axis=1) != self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.int64]) -> "Answers":
        return Answers(self.labels[index], self.features[index], self.probabilities[index])

    def then(self, later: "Answers") -> "Answers":
        """Return these and then *later*."""
        return Answers(
            np.concatenate([self.labels, later.labels]),
            np.concatenate([self.features, later.features]),
            np.concatenate([self.probabilities, later.probabilities]),
        )


@dataclass(frozen=True, eq=False)
class Change:
    """What traffic becomes."""

    told: str
    answers: Answers
    """Of the pictures as they come then."""
    weights: NDArray[np.float64]
    """Of the classes."""

    def draw(self, random: np.random.Generator, count: int) -> Answers:
        """Return so many draws, independent of each other."""
        shares = self.weights[self.answers.labels]
        return self.answers[random.choice(len(self.answers), count, p=shares / shares.sum())]


Detector = Callable[[Answers], Iterator[int]]
"""Yields at which draws there are alarms."""


def windowed(test: Callable[[Answers, int, int], bool], stream: Answers) -> Iterator[int]:
    """Yield the draws of the looks that raise an alarm, after each of which the reference begins anew.

    Args:
        test: Given a stream, where the reference begins, and the end of what is recent.
        stream: To look at.
    """
    begin = 0
    for end in range(CHANGE, len(stream) + 1, DRAWS_PER_LOOK):
        if end - begin >= 2 * ALARM.window and test(stream, begin, end):
            begin = end
            yield end


def answers_shift(stream: Answers, begin: int, end: int) -> bool:
    """Whether the probabilities of answers are spread otherwise."""
    reference, recent = _windows(stream.probabilities, begin, end)
    return bool(softmax_shift(reference, recent, alarm_level(ALARM)))


def features_shift(stream: Answers, begin: int, end: int) -> bool:
    """Whether features lie elsewhere."""
    reference, recent = _windows(stream.features, begin, end)
    level = alarm_level(ALARM)
    return embedding_shift(reference, recent, end, math.ceil(2 / level))[1] <= level


def labels_shift(stream: Answers, begin: int, end: int) -> bool:
    """Whether labels are answered with other shares."""
    best = stream.probabilities.argmax(axis=1)
    reference, recent = (np.bincount(each, minlength=len(LABELS)) for each in _windows(best, begin, end))
    return count_shift(reference, recent) <= alarm_level(ALARM)


def errors_rise(stream: Answers) -> Iterator[int]:
    """Yield the draws at which the detector of errors raises an alarm."""
    detector = ErrorDetector(run_length(ALARM.per_month, DRAWS_PER_DAY, DETECTORS))
    for position, error in enumerate(stream.errors.tolist()):
        if detector.add(error):
            yield position + 1


def adwin(values: Callable[[Answers], NDArray[np.float64]], stream: Answers, delta: float = 0.002) -> Iterator[int]:
    """Yield the draws at which ADWIN says that the mean of *values* has changed.

    Args:
        values: What it is given of a stream.
        stream: To look at.
        delta: The chance of a false alarm at a draw, as ADWIN has it; by default river's.
    """
    detector = ADWIN(delta=delta)  # type: ignore[no-untyped-call]
    for position, value in enumerate(values(stream).tolist()):
        detector.update(value)  # type: ignore[no-untyped-call]
        if detector.drift_detected:
            yield position + 1


def errors_as_numbers(stream: Answers) -> NDArray[np.float64]:
    """Return 1 for each error, and 0 for others."""
    return stream.errors.astype(np.float64)


FOUND: dict[str, Detector] = {
    "answers": partial(windowed, answers_shift),
    "features": partial(windowed, features_shift),
    "shares": partial(windowed, labels_shift),
    "errors": errors_rise,
    "ADWIN, errors": partial(adwin, errors_as_numbers),
    f"ADWIN {EAGER}, errors": partial(adwin, errors_as_numbers, delta=EAGER),
    "ADWIN, confidence": partial(adwin, lambda stream: stream.probabilities.max(axis=1).astype(np.float64)),
}


def _windows(values: NDArray[Any], begin: int, end: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return values[begin : begin + ALARM.window], values[end - ALARM.window : end]


class Bank:
    """The starter's answers to pictures, as they are and spoilt.

    Args:
        encoder: The starter's.
        head: Its last layer.
        pictures: That the starter has not learnt.
    """

    def __init__(self, encoder: Encoder, head: Head, pictures: Samples) -> None:
        self._encoder = encoder
        self._head = head
        self._pictures = pictures
        self._even = np.ones(len(LABELS))
        self.clean = self._answers(self._pictures)

    def usual(self) -> Change:
        """Return traffic as it is before any change."""
        return Change("none", self.clean, self._even)

    def spoilt(self, corruption: str, severity: int) -> Change:
        """Return traffic whose pictures are spoilt."""
        images = corrupt(self._pictures.images, corruption, severity, np.random.default_rng(severity))
        answers = self._answers(Samples(images, self._pictures.labels))
        return Change(f"{corruption.replace('_', ' ')}, severity {severity}", answers, self._even)

    def shared(self, told: str, weights: Mapping[str, float]) -> Change:
        """Return traffic with other shares of classes; those that *weights* does not name have weight 1."""
        return Change(told, self.clean, np.array([weights.get(label, 1.0) for label in LABELS]))

    def _answers(self, pictures: Samples) -> Answers:
        features = self._encoder.embed(pictures.images)
        kept = features.astype(np.float16).astype(np.float32)  # as rows have them
        return Answers(pictures.labels, kept, head_probabilities(self._head, features))


def changes(bank: Bank) -> list[Change]:
    """Return what traffic may become."""
    return [
        *(bank.spoilt(corruption, severity) for corruption, severities in SPOILT.items() for severity in severities),
        bank.shared("twice as many cats", {"cat": 2.0}),
        bank.shared("four times as many cats", {"cat": 4.0}),
        bank.shared("half as many animals", dict.fromkeys(ANIMALS, 0.5)),
    ]


def false_alarms(bank: Bank, streams: int, draws: int, seed: int) -> dict[str, int]:
    """Return how many alarms each detector raises on traffic that stays as it is."""
    counts = dict.fromkeys(FOUND, 0)
    for number in range(streams):
        stream = bank.usual().draw(np.random.default_rng([seed, number]), draws)
        for name in counts:
            counts[name] += sum(1 for _ in FOUND[name](stream))
    return counts


def delays(bank: Bank, change: Change, streams: int, seed: int) -> dict[str, list[float]]:
    """Return after how many draws each detector sees *change*, infinite where it does not."""
    found: dict[str, list[float]] = {name: [] for name in FOUND}
    for number in range(streams):
        random = np.random.default_rng([seed, 1, number])
        stream = bank.usual().draw(random, CHANGE).then(change.draw(random, MOST_DELAY))
        for name, detector in FOUND.items():
            found[name].append(next((float(at - CHANGE) for at in detector(stream) if at > CHANGE), math.inf))
    return found


def told(seen: Sequence[float]) -> str:
    """Return the median delay, and how many of the changes were seen where not all were."""
    count = sum(map(math.isfinite, seen))
    median = statistics.median(seen)
    half = f"{median:.0f}" if math.isfinite(median) else "-"
    return half if count == len(seen) else f"{half} ({count} of {len(seen)})"


def main() -> None:
    """Let streams pass by, and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20, help="for each change, and without one")
    parser.add_argument("--draws", type=int, default=10_000, help="of a stream without a change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    out = Console(width=200, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        cut_encoder(VERSION / GRAPH_FILE, path)
        bank = Bank(Encoder(path, options.threads), find_tail(VERSION / GRAPH_FILE).head, read_slice()[1])
        months = options.streams * options.draws / DRAWS_PER_DAY / MONTH_DAYS
        out.print(
            f"{DRAWS_PER_DAY} draws a day, {ALARM.looks_per_day} looks a day, windows of {ALARM.window} draws; "
            f"{ALARM.per_month:g} false alarm a month allowed to {DETECTORS} detectors together\n"
        )
        out.print(f"| traffic | right | {' | '.join(FOUND)} |")
        out.print(f"|---|---|{'---|' * len(FOUND)}")
        counts = false_alarms(bank, options.streams, options.draws, options.seed)
        cells = " | ".join(f"{count} ({count / months:.1f} a month)" for count in counts.values())
        out.print(f"| no change, {months:.1f} months: false alarms | {_right(bank.usual())} | {cells} |")
        for change in changes(bank):
            found = delays(bank, change, options.streams, options.seed)
            out.print(f"| {change.told}: delay | {_right(change)} | {' | '.join(map(told, found.values()))} |")


def _right(change: Change) -> str:
    """Return the accuracy on that traffic."""
    shares = change.weights[change.answers.labels]
    return f"{1 - np.average(change.answers.errors, weights=shares):.1%}"


if __name__ == "__main__":
    main()
