"""What wrong labels do to a model that learns from users, with the guards of the loop and without.

The pictures are real, the slice of CIFAR-10 that comes with the repository; the features are those of the starter's
encoder. Six contributors label a stream of pictures, one or two of them each picture, and a reviewer a few more.
Guarded, votes go the product's way, in its own functions, on lists where it has rows: fused, judged by neighbours,
quorum and what reviewers have shown, screened for labels that are likely wrong and for contributors who do harm,
capped. Unguarded, every word is learnt from. Then the last layer is fitted anew, as a refit does, and measured on
pictures that nobody sent. The gate comes after all this and is left out here.

A loss is told beside two worlds: one in which all words are right, and one in which the wrong words are not said. No
guard can make a right word of a wrong one, so the guards are held to the second.

Twice: on the pictures as they are, where the starter has little to learn, and on blurred ones, where it needs labels.
The encoder has learnt the pictures that users send, without blur; those that are measured on it has never seen.
"""

import argparse
import hashlib
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from aimass.starter import VERSION
from services.common.manifest import GRAPH_FILE
from services.trainer.analyst.suspicion import (
    FOLDS,
    LEAST_BLOCK,
    Labelled,
    class_thresholds,
    find_harm,
    fit,
    likely_wrong,
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
from services.trainer.data.samples import Samples
from services.trainer.data.slices import read_slice
from services.trainer.evaluation.robustness import corrupt
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.feedback.evidence import Reviewed, label_posterior, learn
from services.trainer.feedback.harm import not_released
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.reliability import CONFIRMED, Reliability
from services.trainer.feedback.trust import (
    CONTRIBUTOR_HARMS,
    LIKELY_WRONG,
    NEIGHBOURS_DISAGREE,
    ObservationFacts,
    Verdict,
    VoteFact,
    judge,
    support,
)
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
"""Accuracy that wrong words may cost with the guards, in the mean of the seeds."""

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


@dataclass(frozen=True, eq=False)
class Shown:
    """Pictures as they are shown, embedded."""

    train: Labelled
    digests: tuple[str, ...]
    """SHA-256 of the pixels of *train*."""
    test: Labelled


def show(encoder: Encoder, pictures: tuple[Samples, Samples], severity: int) -> Shown:
    """Embed pictures, blurred where *severity* is above 0.

    Args:
        encoder: The starter's.
        pictures: Those that the model has learnt or that users send, and those that it is measured on.
        severity: Of the blur.
    """
    random = np.random.default_rng(severity)
    train, test = pictures
    images = [each.images for each in (train, test)]
    if severity:
        images = [corrupt(each, "gaussian_blur", severity, random) for each in images]
    digests = tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images[0])
    learnt, unseen = (Labelled(encoder.embed(each), of.labels) for each, of in zip(images, (train, test), strict=True))
    return Shown(learnt, digests, unseen)


def make_world(known: Shown, sent: Shown, start: Head, pictures: int, seed: int) -> World:
    """Share the pictures out.

    Args:
        known: As the model has learnt it.
        sent: As users send it, and as it is measured.
        start: The starter's last layer.
        pictures: That users send.
        seed: Of which those are.
    """
    random = np.random.default_rng(seed)
    labels = known.train.labels
    orders = [random.permutation(np.flatnonzero(labels == number)) for number in range(len(LABELS))]
    learnt = BASE_PER_CLASS + VALIDATION_PER_CLASS
    base, validation, rest = (
        np.concatenate([order[part] for order in orders])
        for part in (slice(BASE_PER_CLASS), slice(BASE_PER_CLASS, learnt), slice(learnt, None))
    )
    chosen = random.permutation(rest)[:pictures]
    digests = tuple(sent.digests[each] for each in chosen)
    return World(start, known.train[base], known.train[validation], sent.train[chosen], digests, sent.test)


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

    def __init__(self, world: World, votes: Sequence[Vote], trust: TrustPolicy) -> None:
        self._world = world
        self._trust = trust
        self._base = world.base.joined(world.validation)
        self._votes: dict[int, list[Vote]] = {}
        for vote in votes:
            self._votes.setdefault(vote.picture, []).append(vote)
        self._verdicts: dict[int, Verdict] = {}
        self._accepted: dict[int, int] = {}
        """Labels."""
        self._findings: dict[int, set[str]] = {picture: set() for picture in self._votes}
        self._doubted: dict[int, int] = {}
        """Labels of pictures that were said to be labelled wrong."""

    def take(self, rounds: int) -> list[Word]:
        """Return what may be learnt, after pictures came in so many *rounds*, each screened at its end."""
        for part in np.array_split(np.array(sorted(self._votes)), rounds):
            arrived = [picture for picture in sorted(self._votes) if picture <= part[-1]]
            # As the analyst does, which places again what waits, here twice: whom it knows by then counts for more.
            for _ in range(2):
                self._judge([each for each in arrived if self._waits(each)], arrived)
            self._judge(sorted(self._screen()), arrived)
        return self._chosen()

    def reasons(self) -> Counter[str]:
        """Return how many pictures have come how far, and why."""
        return Counter(f"{each.state.value} {each.reason}".strip() for each in self._verdicts.values())

    def _waits(self, picture: int) -> bool:
        verdict = self._verdicts.get(picture)
        return verdict is None or verdict.state is State.PENDING or verdict.reason == NEIGHBOURS_DISAGREE

    def _reliability(self, arrived: Sequence[int]) -> Reliability:
        """Return what is known of contributors, as `read_reliability` does from rows."""
        harmful = self._harmful()
        names = (*CONTRIBUTORS, REVIEWER)
        said = [
            (picture, names.index(vote.contributor), vote.label)
            for picture in arrived
            for vote in self._votes[picture]
            if vote.contributor not in harmful
        ]
        fused = fuse_votes(said, len(LABELS), {names.index(REVIEWER)}).accuracy
        accuracy = {names[number]: share for number, share in fused.items()}
        accuracy |= dict.fromkeys(harmful, 1 / len(LABELS))
        voices = (self._voices(picture) for picture in self._accepted)
        confirmed = Counter(name for agreeing in voices if len(agreeing) > 1 for name in agreeing)
        proven = frozenset(name for name, count in confirmed.items() if count >= CONFIRMED) - harmful
        reviewed = [each for each in sorted(self._accepted) if REVIEWER in self._voices(each)]
        known = []
        lifts, members = self._near(reviewed)
        for picture, beside in zip(reviewed, lifts, strict=True):
            others = [vote for vote in self._votes[picture] if vote.contributor != REVIEWER]
            words = tuple((vote.contributor, LABELS[vote.label]) for vote in others)
            known.append(Reviewed(LABELS[self._accepted[picture]], words, support(beside, members, self._trust)))
        return Reliability(accuracy, proven, harmful, learn(known, accuracy, len(LABELS)))

    def _harmful(self) -> frozenset[str]:
        found = [picture for picture, kinds in self._findings.items() if CONTRIBUTOR_HARMS in kinds]
        said = {
            picture: [(each.contributor, each.label) for each in self._votes[picture] if each.contributor != REVIEWER]
            for picture in found
        }
        reviewed = {
            picture: [each.label for each in self._votes[picture] if each.contributor == REVIEWER] for picture in found
        }
        return not_released(said, reviewed)

    def _voices(self, picture: int) -> set[str]:
        """Return who has given an accepted picture the label that it has."""
        return {vote.contributor for vote in self._votes[picture] if vote.label == self._accepted[picture]}

    def _members(self) -> dict[str, int]:
        counts = np.bincount(self._base.labels, minlength=len(LABELS))
        counts += np.bincount(list(self._accepted.values()), minlength=len(LABELS))
        return dict(zip(LABELS, counts.tolist(), strict=True))

    def _near(self, pictures: Sequence[int]) -> tuple[list[dict[str, float]], dict[str, int]]:
        """Return the lifts of all labels for each picture, and how many members labels have."""
        members = self._members()
        own = np.array(sorted(self._accepted), np.int64)
        index = self._base.joined(self._samples(own))
        numbers = np.concatenate([np.full(len(self._base), -1), own])
        k = self._trust.neighbours
        every = np.arange(len(LABELS))
        positions, _ = nearest(self._world.sent.features[list(pictures)], index.features, k + 1)
        lifts = []
        for picture, near in zip(pictures, positions, strict=True):
            labels = index.labels[near[numbers[near] != picture][:k]]
            found = label_lift(every, np.tile(labels, (len(LABELS), 1)), np.array(list(members.values())))
            lifts.append(dict(zip(LABELS, found.tolist(), strict=True)))
        return lifts, members

    def _judge(self, pictures: list[int], arrived: Sequence[int]) -> None:
        """Place pictures among all that has a label by now, and accept them or not."""
        if not pictures:
            return
        known = self._reliability(arrived)
        lifts, members = self._near(pictures)
        for picture, lift in zip(pictures, lifts, strict=True):
            votes = tuple(
                VoteFact(vote.contributor, VoteKind.LABEL, LABELS[vote.label], vote.contributor == REVIEWER)
                for vote in self._votes[picture]
            )
            beside = support(lift, members, self._trust)
            facts = ObservationFacts(
                role=Role.TRAIN,
                predicted="",
                votes=votes,
                label_posterior=label_posterior(votes, "", known.accuracy, len(LABELS), beside, known.lessons),
                encoder=True,
                embedded=True,
                lift=lift,
                class_members=members,
                findings=frozenset(self._findings[picture]),
                known_labels=frozenset(LABELS),
                proven=known.proven,
                harmful=known.harmful,
            )
            verdict = self._verdicts[picture] = judge(facts, self._trust)
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
        judging = np.array([not each for each in givers], np.bool_)
        firsts = np.array([each[0] for each in givers if each])
        blocks = {name: firsts == name for name in CONTRIBUTORS if (firsts == name).sum() >= LEAST_BLOCK}
        judges = samples[judging].joined(self._world.validation)
        others = numbers[~judging]
        harm = find_harm(self._world.start, self._world.base, samples[~judging], blocks, judges, lambda: None)
        found = {int(number) for name in harm for number in others[blocks[name]]}
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


@dataclass(frozen=True)
class Attacked:
    """What becomes of an attack, and of the same words without the wrong ones."""

    guarded: Outcome
    unguarded: Outcome
    guarded_silent: Outcome
    unguarded_silent: Outcome
    reasons: Counter[str]
    """Of the attack with the guards."""


def attack(world: World, lie: Lie, reviewed: float, rounds: int, seed: int) -> Attacked:
    """Return what becomes of an attack with the guards and without, and where the wrong words are not said."""
    votes = cast(world.sent.labels, lie, reviewed, seed)
    right = [vote for vote in votes if vote.label == world.sent.labels[vote.picture]]
    guards = Guarded(world, votes, TrustPolicy())
    guarded, unguarded = refit(world, guards.take(rounds)), refit(world, _all_of(votes))
    if len(right) == len(votes):
        return Attacked(guarded, unguarded, guarded, unguarded, guards.reasons())
    silent = refit(world, Guarded(world, right, TrustPolicy()).take(rounds))
    return Attacked(guarded, unguarded, silent, refit(world, _all_of(right)), guards.reasons())


def _all_of(votes: Sequence[Vote]) -> list[Word]:
    return [Word(vote.picture, vote.label) for vote in votes]


def measure(worlds: Sequence[World], told: str, options: argparse.Namespace, out: Console) -> bool:
    """Attack worlds of one kind, print a table, and return whether the guards held."""
    before = _mean(accuracy(world.start, world.unseen) for world in worlds)
    out.print(f"\nPictures {told}; before any label of users {before:.1%} are right. Losses in points, with the guards")
    out.print("and without: beside the wrong words not said, and beside all words right\n")
    out.print(
        "| attack | right | lost, not said | lost, all right | learnt, wrong | no guards: right | lost | lost | wrong |"
    )
    out.print("|---|---|---|---|---|---|---|---|---|")
    honest: list[Attacked] = []
    held = True
    for name in options.attacks:
        found = [
            attack(world, ATTACKS[name], options.reviewed, options.rounds, seed)
            for seed, world in zip(options.seeds, worlds, strict=True)
        ]
        honest = honest or found
        silent = [each.guarded_silent.accuracy - each.guarded.accuracy for each in found]
        bare_silent = [each.unguarded_silent.accuracy - each.unguarded.accuracy for each in found]
        right = [one.guarded.accuracy - each.guarded.accuracy for each, one in zip(found, honest, strict=True)]
        bare = [one.unguarded.accuracy - each.unguarded.accuracy for each, one in zip(found, honest, strict=True)]
        held &= _mean(silent) <= MOST_LOST
        out.print(
            f"| {name} | {_mean(each.guarded.accuracy for each in found):.1%} | {_spread(silent)} | {_spread(right)} | "
            f"{_mean(each.guarded.learnt for each in found):.0f}, "
            f"{_mean(each.guarded.wrong for each in found):.1%} | "
            f"{_mean(each.unguarded.accuracy for each in found):.1%} | {_spread(bare_silent)} | {_spread(bare)} | "
            f"{_mean(each.unguarded.wrong for each in found):.1%} |"
        )
        if options.reasons:
            out.print(str(dict(sum((each.reasons for each in found), Counter[str]()))))
    return held


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(list(values))


def _spread(losses: Sequence[float]) -> str:
    """Return the mean of losses in points, and twice the standard error of it."""
    points = [100 * each for each in losses]
    error = 2 * statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0
    return f"{statistics.mean(points):.1f} ± {error:.1f}"


def main() -> None:
    """Attack, and print a table in Markdown for each severity; end with 1 where wrong words cost more than may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6, 7], help="0 to 3 have chosen the constants")
    parser.add_argument("--pictures", type=int, default=1200, help="that users send")
    parser.add_argument("--rounds", type=int, default=4, help="in which they come; the analyst looks after each")
    parser.add_argument("--reviewed", type=float, default=0.05, help="share of pictures that a reviewer labels too")
    parser.add_argument("--severities", type=int, nargs="+", default=[0, 3], help="of the blur; 0 is none")
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS), help="the first: beside")
    parser.add_argument("--reasons", action="store_true", help="tell how far pictures came, and why")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    out = Console(width=200, highlight=False)
    out.print(
        f"seeds {', '.join(map(str, options.seeds))}; {options.pictures} pictures of {len(CONTRIBUTORS)} contributors, "
        f"{options.reviewed:.0%} reviewed; means, and twice their standard errors over the seeds"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        cut_encoder(VERSION / GRAPH_FILE, path)
        encoder, start = Encoder(path, options.threads), find_tail(VERSION / GRAPH_FILE).head
        pictures = read_slice()
        known = show(encoder, pictures, 0)
        held = []
        for severity in options.severities:
            sent = show(encoder, pictures, severity) if severity else known
            worlds = [make_world(known, sent, start, options.pictures, seed) for seed in options.seeds]
            told = f"blurred, severity {severity}" if severity else "as they are"
            held.append(measure(worlds, told, options, out))
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
