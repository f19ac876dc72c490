"""What wrong labels do to a model that learns from users, with the guards of the loop and without.

The pictures are real, the slice of CIFAR-10 that comes with the repository; the features are those of the starter's
encoder. Six contributors label a stream of pictures, one or two of them each picture, and a reviewer a few more.
Guarded, votes go the product's way: fused, judged by neighbours and quorum, screened for labels that are likely wrong
and for contributors who do harm, capped. Unguarded, every word is learnt from. Then the last layer is fitted anew, as a
refit does, and measured on pictures that nobody sent. The gate comes after all this and is left out here.

Twice: on the pictures as they are, where the starter has little to learn, and on blurred ones, where it needs labels.
The encoder has learnt the pictures that users send, without blur; those that are measured on it has never seen.
"""

import argparse
import hashlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from aimass.starter import VERSION
from services.common.manifest import GRAPH_FILE
from services.trainer.analyst.screening import LEAST_BLOCK
from services.trainer.analyst.suspicion import (
    FOLDS,
    Labelled,
    class_thresholds,
    fit,
    harm_level,
    likely_wrong,
    log_harm,
    out_of_fold,
)
from services.trainer.data.choosing import (
    Base,
    Candidate,
    Caps,
    choose_validation,
    count_beside,
    draw_base,
    within_caps,
)
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.data.slices import read_slice
from services.trainer.evaluation.robustness import corrupt
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.reliability import label_posterior
from services.trainer.feedback.trust import CONTRIBUTOR_HARMS, LIKELY_WRONG, ObservationFacts, VoteFact, judge
from services.trainer.loop.policy import RetrainPolicy
from services.trainer.statistics.agreement import fuse_votes
from services.trainer.statistics.heads import Head, choose_pull, fit_head, head_probabilities
from services.trainer.statistics.neighbours import label_lift, nearest

CONTRIBUTORS = tuple("abcdef")
REVIEWER = "reviewer"
BASE_PER_CLASS, VALIDATION_PER_CLASS = 50, 15
"""Of the set that the model has learnt before: enough of each class that neighbours can be asked."""
SMOOTHING, ROUNDS = 0.05, 300
"""As a refit has them."""
CAT, DOG = LABELS.index("cat"), LABELS.index("dog")
MOST_LOST = 0.005
"""Accuracy that an attack may cost with the guards, in the mean of the seeds."""

Lie = Callable[[np.random.Generator, int, int], int]
"""Given the contributor's number and the true class, what he says."""


class Vote(NamedTuple):
    """What one contributor says of one picture."""

    picture: int
    contributor: str
    label: int


class Word(NamedTuple):
    """A label that is learnt."""

    picture: int
    label: int


@dataclass(frozen=True, eq=False)
class World:
    """Features and labels, each picture in one part."""

    start: Head
    base: Labelled
    validation: Labelled
    sent: Labelled
    digests: tuple[str, ...]
    """SHA-256 of the pixels of what is sent."""
    unseen: Labelled


@dataclass(frozen=True)
class Outcome:
    """Of one attack."""

    accuracy: float
    learnt: int
    """Labels of users."""
    wrong: float
    """Share of them."""


def noise(share: float) -> Lie:
    """Return a lie of everybody: any other class, in *share* of the words."""

    def lie(random: np.random.Generator, contributor: int, truth: int) -> int:
        return (truth + int(random.integers(1, len(LABELS)))) % len(LABELS) if random.random() < share else truth

    return lie


def cats(liars: int) -> Lie:
    """Return the lie of the first *liars*: every cat is a dog."""
    return lambda random, contributor, truth: DOG if contributor < liars and truth == CAT else truth


def turned(liars: int) -> Lie:
    """Return the lie of the first *liars*, who agree: everything is the class after its own."""
    return lambda random, contributor, truth: (truth + (contributor < liars)) % len(LABELS)


ATTACKS: Mapping[str, Lie] = {
    "none": noise(0.0),
    **{f"any other class, {share:.0%} of all words": noise(share) for share in (0.01, 0.05, 0.1, 0.2)},
    **{f"cats are dogs, {liars} of 6": cats(liars) for liars in (1, 2, 3, 6)},
    **{f"all classes turned, {liars} of 6": turned(liars) for liars in (1, 2, 3)},
}


def make_world(encoder: Encoder, start: Head, severity: int, pictures: int, seed: int) -> World:
    """Share out the slice, its pictures blurred where *severity* is above 0, except those learnt before.

    Args:
        encoder: The starter's.
        start: The starter's last layer.
        severity: Of the blur.
        pictures: That users send.
        seed: Of who has which.
    """
    random = np.random.default_rng(seed)
    train, test = read_slice()
    orders = [random.permutation(np.flatnonzero(train.labels == number)) for number in range(len(LABELS))]
    known = BASE_PER_CLASS + VALIDATION_PER_CLASS
    base, validation, rest = (
        np.concatenate([order[part] for order in orders])
        for part in (slice(BASE_PER_CLASS), slice(BASE_PER_CLASS, known), slice(known, None))
    )
    sent = train[random.permutation(rest)[:pictures]]
    images = [sent.images, test.images]
    if severity:
        images = [corrupt(each, "gaussian_blur", severity, random) for each in images]
    return World(
        start,
        Labelled(encoder.embed(train.images[base]), train.labels[base]),
        Labelled(encoder.embed(train.images[validation]), train.labels[validation]),
        Labelled(encoder.embed(images[0]), sent.labels),
        tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images[0]),
        Labelled(encoder.embed(images[1]), test.labels),
    )


def cast(labels: NDArray[np.int64], lie: Lie, reviewed: float, seed: int) -> list[Vote]:
    """Return what is said of pictures, in the order of arrival.

    Args:
        labels: Of the pictures, the true ones.
        lie: What contributors say of them.
        reviewed: Share of pictures that the reviewer labels too, who does not err.
        seed: Of who says something of what.
    """
    random = np.random.default_rng([seed, 1])
    votes = []
    for picture, truth in enumerate(labels.tolist()):
        speakers = random.permutation(len(CONTRIBUTORS))[: random.integers(1, 3)].tolist()
        votes += [Vote(picture, CONTRIBUTORS[each], lie(random, each, truth)) for each in speakers]
        if random.random() < reviewed:
            votes.append(Vote(picture, REVIEWER, truth))
    return votes


class Guarded:
    """Pictures and what is said of them, on their way through the guards.

    Args:
        world: What is known beside.
        votes: All that will be said.
        trust: The policy.
    """

    def __init__(self, world: World, votes: list[Vote], trust: TrustPolicy) -> None:
        self._world = world
        self._trust = trust
        self._base = world.base.joined(world.validation)
        self._votes: dict[int, list[Vote]] = {}
        for vote in votes:
            self._votes.setdefault(vote.picture, []).append(vote)
        self._states: dict[int, State] = {}
        self._accepted: dict[int, int] = {}
        """Labels."""
        self._findings: dict[int, set[str]] = {picture: set() for picture in self._votes}
        self._doubted: dict[int, int] = {}
        """Labels of pictures that were said to be labelled wrong."""

    def take(self, rounds: int) -> list[Word]:
        """Return what may be learnt, after pictures came in so many *rounds*, each screened at its end."""
        for part in np.array_split(np.array(sorted(self._votes)), rounds):
            arrived = {picture for picture in self._votes if picture <= part[-1]}
            accuracy = self._accuracy(arrived)
            # As the analyst does, which places again what waits for votes, and leaves to reviewers what is quarantined.
            waiting = sorted(each for each in arrived if self._states.get(each, State.PENDING) is State.PENDING)
            self._judge(waiting, accuracy)
            self._judge(sorted(self._screen()), accuracy)
        return self._chosen()

    def _accuracy(self, arrived: set[int]) -> dict[str, float]:
        names = (*CONTRIBUTORS, REVIEWER)
        said = [(v.picture, names.index(v.contributor), v.label) for each in arrived for v in self._votes[each]]
        fused = fuse_votes(said, len(LABELS), {names.index(REVIEWER)})
        return {names[number]: share for number, share in fused.accuracy.items()}

    def _judge(self, pictures: list[int], accuracy: Mapping[str, float]) -> None:
        """Place pictures among all that has a label by now, and accept them or not."""
        own = np.array(sorted(self._accepted), np.int64)
        index = self._base.joined(self._samples(own))
        numbers = np.concatenate([np.full(len(self._base), -1), own])
        counts = np.bincount(index.labels, minlength=len(LABELS))
        if not pictures:
            return
        k = self._trust.neighbours
        positions, _ = nearest(self._world.sent.features[pictures], index.features, k + 1)
        for picture, near in zip(pictures, positions, strict=True):
            labels = index.labels[near[numbers[near] != picture][:k]]
            votes = tuple(
                VoteFact(vote.contributor, VoteKind.LABEL, LABELS[vote.label], vote.contributor == REVIEWER)
                for vote in self._votes[picture]
            )
            named = sorted({vote.label for vote in self._votes[picture]})
            lifts = label_lift(np.array(named), np.tile(labels, (len(named), 1)), counts)
            facts = ObservationFacts(
                role=Role.TRAIN,
                predicted="",
                votes=votes,
                label_posterior=label_posterior(votes, "", accuracy, len(LABELS)),
                encoder=True,
                embedded=True,
                lift={LABELS[label]: float(lift) for label, lift in zip(named, lifts, strict=True)},
                class_members={LABELS[label]: int(counts[label]) for label in named},
                findings=frozenset(self._findings[picture]),
                known_labels=frozenset(LABELS),
            )
            verdict = judge(facts, self._trust)
            self._states[picture] = verdict.state
            if verdict.state is State.ACCEPTED:
                self._accepted[picture] = LABELS.index(verdict.label)
            else:
                self._accepted.pop(picture, None)

    def _samples(self, pictures: NDArray[np.int64]) -> Labelled:
        labels = np.array([self._accepted[each] for each in pictures.tolist()], np.int64)
        return Labelled(self._world.sent.features[pictures], labels)

    def _givers(self, picture: int) -> list[str]:
        """Return who said what was accepted, the first one first; nobody where the reviewer did."""
        givers = [vote.contributor for vote in self._votes[picture] if vote.label == self._accepted[picture]]
        return [] if REVIEWER in givers else givers

    def _screen(self) -> set[int]:
        """Look at all accepted ones together, as the analyst does; return those to be judged again."""
        world = self._world
        numbers = np.array(sorted(self._accepted), np.int64)
        samples = self._samples(numbers)
        probabilities = out_of_fold(world.start, world.base, samples, numbers % FOLDS, lambda: None)
        wrong = likely_wrong(samples.labels, probabilities, class_thresholds(samples.labels, probabilities))
        cleared = self._cleared(samples)
        for picture in cleared:
            self._findings[picture].discard(LIKELY_WRONG)
            del self._doubted[picture]
        for picture in numbers[wrong].tolist():
            self._findings[picture].add(LIKELY_WRONG)
            self._doubted[picture] = self._accepted[picture]
        return cleared | set(numbers[wrong].tolist()) | self._find_harm(numbers, samples)

    def _cleared(self, samples: Labelled) -> set[int]:
        """Return the suspects whose labels a head that is fitted to *samples* gives them too."""
        suspects = sorted(self._doubted.keys() - self._accepted.keys())
        if not suspects:
            return set()
        head = fit(self._world.start, self._world.base.joined(samples))
        best = head_probabilities(head, self._world.sent.features[suspects]).argmax(axis=1)
        return {picture for picture, label in zip(suspects, best, strict=True) if label == self._doubted[picture]}

    def _find_harm(self, numbers: NDArray[np.int64], samples: Labelled) -> set[int]:
        """Return the samples of contributors with whom the model gets worse."""
        givers = [self._givers(each) for each in numbers.tolist()]
        blocks = [np.array([each[:1] == [name] for each in givers]) for name in CONTRIBUTORS]
        blocks = [block for block in blocks if block.sum() >= LEAST_BLOCK]
        judging = np.array([not each for each in givers])
        judges = samples[judging].joined(self._world.validation)
        with_them = fit(self._world.start, self._world.base.joined(samples[~judging]))
        found: set[int] = set()
        for block in blocks:
            without = fit(self._world.start, self._world.base.joined(samples[~judging & ~block]))
            if log_harm(without, with_them, judges) >= harm_level(len(blocks)):
                found |= set(numbers[block].tolist())
        for picture in found:
            self._findings[picture].add(CONTRIBUTOR_HARMS)
        return found

    def _chosen(self) -> list[Word]:
        """Return what is left of the accepted ones within the caps."""
        counts = np.bincount(self._world.base.labels, minlength=len(LABELS))
        candidates = {
            picture: Candidate(self._world.digests[picture], label, frozenset(self._givers(picture)))
            for picture, label in sorted(self._accepted.items())
        }
        caps = Caps(self._trust.cap_share, self._trust.cap_least)
        kept = set(within_caps(list(candidates.values()), counts, caps, beside))
        return [Word(picture, each.label) for picture, each in candidates.items() if each in kept]


def beside(new: int) -> int:
    """Return how many samples of the base are learnt beside *new* ones of users."""
    policy = RetrainPolicy()
    return count_beside(new, policy.base_per_new, policy.base_least)


def refit(world: World, words: Sequence[Word]) -> Outcome:
    """Fit the last layer to *words* and some of the base, as a refit does, and measure it on what nobody sent."""
    candidates = [Candidate(world.digests[each.picture], each.label, frozenset()) for each in words]
    validation = choose_validation(candidates)
    new = [each for each in candidates if each.pixel_digest not in validation]
    rows = [each.picture for each in words if world.digests[each.picture] not in validation]
    drawn = draw_base(Base("slice", "", world.base.labels), beside(len(new)), new, "0")
    learnt = Labelled(world.sent.features[rows], np.array([each.label for each in new], np.int64))
    samples = world.base[drawn].joined(learnt)
    features, labels, start = samples.features, samples.labels, world.start
    pull = choose_pull(features, labels, start, smoothing=SMOOTHING, rounds=ROUNDS, seed=0)
    head = fit_head(features, labels, start, smoothing=SMOOTHING, rounds=ROUNDS, pull=pull)
    wrong = sum(each.label != world.sent.labels[each.picture] for each in words)
    return Outcome(accuracy(head, world.unseen), len(words), wrong / len(words))


def accuracy(head: Head, samples: Labelled) -> float:
    """Return the share of *samples* that *head* has right."""
    return float((head_probabilities(head, samples.features).argmax(axis=1) == samples.labels).mean())


def attack(world: World, lie: Lie, options: argparse.Namespace, seed: int) -> tuple[Outcome, Outcome]:
    """Return what becomes of an attack with the guards, and without."""
    votes = cast(world.sent.labels, lie, options.reviewed, seed)
    guarded = Guarded(world, votes, TrustPolicy()).take(options.rounds)
    return refit(world, guarded), refit(world, [Word(vote.picture, vote.label) for vote in votes])


def measure(encoder: Encoder, start: Head, severity: int, options: argparse.Namespace, out: Console) -> bool:
    """Attack worlds of one kind, print a table, and return whether the guards held."""
    worlds = [make_world(encoder, start, severity, options.pictures, seed) for seed in range(options.seeds)]
    before = statistics.mean(accuracy(start, world.unseen) for world in worlds)
    told = f"blurred, severity {severity}" if severity else "as they are"
    out.print(f"\nPictures {told}; before any label of users {before:.1%} are right\n")
    out.print(
        "| attack | guarded: right | lost, points | learnt | of these wrong | unguarded: right | lost, points | wrong |"
    )
    out.print("|---|---|---|---|---|---|---|---|")
    honest: list[tuple[Outcome, Outcome]] = []
    held = True
    for name, lie in ATTACKS.items():
        found = [attack(world, lie, options, seed) for seed, world in enumerate(worlds)]
        honest = honest or found
        guarded, unguarded = (
            [reference[side].accuracy - each[side].accuracy for each, reference in zip(found, honest, strict=True)]
            for side in (0, 1)
        )
        held &= statistics.mean(guarded) <= MOST_LOST
        out.print(
            f"| {name} | {_mean(each[0].accuracy for each in found):.1%} | {_spread(guarded)} | "
            f"{_mean(each[0].learnt for each in found):.0f} | {_mean(each[0].wrong for each in found):.1%} | "
            f"{_mean(each[1].accuracy for each in found):.1%} | {_spread(unguarded)} | "
            f"{_mean(each[1].wrong for each in found):.1%} |"
        )
    return held


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(list(values))


def _spread(losses: Sequence[float]) -> str:
    """Return the mean of losses in points, and the range of them."""
    points = [100 * each for each in losses]
    return f"{statistics.mean(points):.1f} ({min(points):.1f} to {max(points):.1f})"


def main() -> None:
    """Attack, and print two tables in Markdown; end with 1 where an attack cost more than guards may let pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1500, help="that users send")
    parser.add_argument("--rounds", type=int, default=5, help="in which they come; the analyst looks after each")
    parser.add_argument("--reviewed", type=float, default=0.05, help="share of pictures that a reviewer labels too")
    parser.add_argument("--severities", type=int, nargs="+", default=[0, 3], help="of the blur; 0 is none")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    out = Console(width=200, highlight=False)
    out.print(
        f"{options.seeds} seeds, {options.pictures} pictures of {len(CONTRIBUTORS)} contributors, "
        f"{options.reviewed:.0%} reviewed; means and, in brackets, the least and the most of the seeds"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        cut_encoder(VERSION / GRAPH_FILE, path)
        encoder, start = Encoder(path, options.threads), find_tail(VERSION / GRAPH_FILE).head
        held = [measure(encoder, start, severity, options, out) for severity in options.severities]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
