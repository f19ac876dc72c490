"""How often a gate promotes a model that is not better, over whole lives of models, and what a better one costs.

A life is a row of candidates against one champion after another, judged on the same contents again and again, while
more of them come each day and the gate looks each day. A reviewer is asked only where candidate and champion differ,
in the order of the contents, so many each day. Users report mistakes alone, and what they report is reviewed at once:
labels are there sooner where the champion was wrong. The product's gate counts contents in their order up to the first
that waits for its label, and beside them a hold-out that all candidates of a life are judged on again. After one
promotion in ten somebody goes back. Candidates are made independently, or alike, as refits are: half of what one
answers otherwise, the next one does too.
Beside it, gates that are found elsewhere: "more right on the first 1,000", McNemar's test at 5 % repeated each day,
and the product's own evidence counted over whatever is labelled, in whatever order.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from services.trainer.statistics.betting import highest_log_e, highest_log_mean_e
from services.trainer.statistics.budget import error_share

ALPHA = 0.05
CANDIDATES = 20
FIRST_CONTENTS, CONTENTS_PER_DAY, DAYS = 500, 50, 7
LABELS_PER_DAY = 40
"""That the reviewer gives in order, beside what users report."""
HOLDOUT = 1000
"""Contents, fixed for a life."""
GONE_BACK = 0.1
"""Of promotions."""
REPORTED = 0.7
"""Of the champion's mistakes."""
MCNEMAR = 3.841458820694124
"""95 % point of the chi-squared distribution with one degree of freedom."""
EQUAL = (0.0,)
WORSE = (0.0, -0.005, -0.01)
SOME_BETTER = (0.0, 0.0, -0.005, -0.01, 0.02, 0.04)
"""Of the candidates' gains in accuracy, each is drawn from one of these."""
SCENES = (
    ("all equal", EQUAL, 0.0),
    ("all equal, and alike", EQUAL, 0.5),
    ("equal or worse", WORSE, 0.0),
    ("some better", SOME_BETTER, 0.0),
)
"""With the share of contents on which whether a candidate answers otherwise is decided once for a life."""


@dataclass(frozen=True)
class Trial:
    """What one candidate's gate can see."""

    number: int
    """Among the candidates of this life, from 1."""
    outcomes: NDArray[np.int8]
    """Of every content, in the order of draws: 1 a win of the candidate, 0 a tie, -1 a loss."""
    labelled: NDArray[np.float64]
    """The day of this gate on which each content's outcome is known; ties are known when they come."""
    present: NDArray[np.int64]
    """How many contents there are on each day of this gate."""
    holdout: NDArray[np.int8]
    """Of every content of the hold-out, as *outcomes*."""


Gate = Callable[[Trial], bool]


def betting(trial: Trial) -> bool:
    """Pass as the product does: evidence of the hold-out, and of draws in their order up to what is not labelled."""
    live = discordant(trial.outcomes[: reach(trial)])
    return highest_log_mean_e(discordant(trial.holdout), live) >= math.log(1 / error_share(ALPHA, trial.number))


def betting_on_draws_alone(trial: Trial) -> bool:
    """Pass by the draws, as the product does with `evidence = "live"`."""
    return highest_log_e(discordant(trial.outcomes[: reach(trial)])) >= math.log(1 / error_share(ALPHA, trial.number))


def betting_on_what_is_labelled(trial: Trial) -> bool:
    """Pass by the same evidence, over all that is labelled on the day of each look: mistakes come first."""
    needed = math.log(1 / error_share(ALPHA, trial.number))
    return any(
        highest_log_e(discordant(trial.outcomes[:count][trial.labelled[:count] <= day])) >= needed
        for day, count in enumerate(trial.present)
    )


def more_right(trial: Trial) -> bool:
    """Pass where the candidate is right more often on the first 1,000 contents, or those that are labelled by then."""
    return int(trial.outcomes[: min(1000, reach(trial))].sum()) > 0


def repeated_mcnemar(trial: Trial) -> bool:
    """Pass where McNemar's test says "better" at 5 % on any day."""
    for day, count in enumerate(trial.present):
        known = discordant(trial.outcomes[: first_unlabelled(trial, day, count)])
        if known.sum() > 0 and int(known.sum()) ** 2 > MCNEMAR * len(known):
            return True
    return False


GATES: dict[str, Gate] = {
    "betting on hold-out and draws": betting,
    "betting on draws, labels in order": betting_on_draws_alone,
    "betting, whatever is labelled": betting_on_what_is_labelled,
    "more right on 1,000": more_right,
    "McNemar 5 %, each day": repeated_mcnemar,
}


@dataclass
class Tally:
    """What a gate did over lives."""

    lives: int = 0
    spoiled: int = 0
    """Lives in which one was promoted that is not better."""
    not_better: int = 0
    not_better_promoted: int = 0
    better: int = 0
    better_promoted: int = 0


def first_unlabelled(trial: Trial, day: int, count: int) -> int:
    """Return where the first of *count* contents lies that has no label on *day*; *count* where all have."""
    waiting = trial.labelled[:count] > day
    return int(waiting.argmax()) if waiting.any() else count


def reach(trial: Trial) -> int:
    """Return how many contents are counted on the last day; those of the days before are among them."""
    return first_unlabelled(trial, len(trial.present) - 1, int(trial.present[-1]))


def discordant(outcomes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Leave out ties, which say nothing without a margin and cost time."""
    return np.asarray(outcomes[outcomes != 0])


def challenge(
    random: np.random.Generator,
    habit: NDArray[np.float64],
    champion: NDArray[np.bool_],
    accuracy: float,
    gain: float,
    differ: float,
) -> tuple[NDArray[np.bool_], float]:
    """Make a candidate: whether it is right on each content, and its true gain, at most half of what is left.

    Args:
        random: Draws where it differs.
        habit: From 0 to 1, drawn once for a life: where candidates differ alike; NaN where each is by itself.
        champion: Whether the champion is right on each content.
        accuracy: The champion's true one.
        gain: The candidate's, over all contents that there are.
        differ: Share of contents on which exactly one of the two is right.
    """
    gain = min(gain, (1 - accuracy) / 2)
    win = min((differ + gain) / 2, 0.9 * (1 - accuracy))
    loss = win - gain
    chance = np.where(np.isnan(habit), random.random(len(champion)), habit)
    turns = chance < np.where(champion, loss / accuracy, win / (1 - accuracy))
    return np.not_equal(champion, turns), gain


def live(
    random: np.random.Generator, gate: Gate, gains: tuple[float, ...], differ: float, alike: float, tally: Tally
) -> None:
    """Live one life, and count what the gate does."""
    contents = HOLDOUT + FIRST_CONTENTS + CANDIDATES * DAYS * CONTENTS_PER_DAY
    accuracy, spoiled = 0.8, False
    champion = random.random(contents) < accuracy
    habit = np.where(random.random(contents) < alike, random.random(contents), math.nan)
    known = np.zeros(contents - HOLDOUT, bool)
    for number in range(1, CANDIDATES + 1):
        candidate, gain = challenge(random, habit, champion, accuracy, float(random.choice(gains)), differ)
        trial = trial_of(random, number, champion, candidate, known)
        known |= (trial.outcomes != 0) & (trial.labelled < DAYS)
        passed = gate(trial)
        if gain > 0:
            tally.better += 1
            tally.better_promoted += passed
        else:
            tally.not_better += 1
            tally.not_better_promoted += passed
            spoiled |= passed
        goes_back = random.random() < GONE_BACK
        if passed and not goes_back:
            champion, accuracy = candidate, accuracy + gain
    tally.lives += 1
    tally.spoiled += spoiled


def trial_of(
    random: np.random.Generator,
    number: int,
    champion: NDArray[np.bool_],
    candidate: NDArray[np.bool_],
    known: NDArray[np.bool_],
) -> Trial:
    """Return what the gate of a candidate sees: contents of before and of its own days, and when they have labels.

    Args:
        random: Draws what users report.
        number: Of the candidate.
        champion: Whether it is right on each content, those of the hold-out first.
        candidate: As *champion*.
        known: Contents of the traffic that were labelled for candidates before.
    """
    before = FIRST_CONTENTS + (number - 1) * DAYS * CONTENTS_PER_DAY
    holdout, outcomes = np.split(candidate.astype(np.int8) - champion.astype(np.int8), [HOLDOUT])
    labelled = np.maximum(0, (np.arange(len(outcomes)) - before) // CONTENTS_PER_DAY).astype(np.float64)
    reported = (outcomes > 0) & (random.random(len(outcomes)) < REPORTED)
    queue = np.flatnonzero((outcomes != 0) & ~known & ~reported)
    turn = np.arange(len(queue)) / LABELS_PER_DAY
    labelled[queue] = np.floor(np.maximum.accumulate(labelled[queue] - turn) + turn)
    return Trial(number, outcomes, labelled, before + CONTENTS_PER_DAY * np.arange(1, DAYS + 1), holdout)


def price(
    random: np.random.Generator, gain: float, differ: float, paths: int, most: int, holdout: int = 0
) -> tuple[float, float, float]:
    """Return the share of first candidates that are promoted, and the medians of contents and labels until then.

    Args:
        random: Draws outcomes.
        gain: True gain in accuracy.
        differ: Share of contents on which exactly one of the two is right.
        paths: Candidates that are simulated.
        most: Contents of the traffic that a gate looks at.
        holdout: Contents of the hold-out, which has its labels; 0 for a gate that looks at the traffic alone.
    """
    needed = math.log(1 / error_share(ALPHA, 1))
    win, loss = (differ + gain) / 2, (differ - gain) / 2
    contents, labels = [], []
    for _ in range(paths):
        kinds = random.choice(np.array([1, 0, -1], np.int8), holdout + most, p=[win, 1 - differ, loss])
        known, outcomes = discordant(kinds[:holdout]), kinds[holdout:]
        places = np.flatnonzero(outcomes)
        evidence = partial(highest_log_mean_e, known) if holdout else highest_log_e
        asked = first_passing(outcomes[places], needed, evidence)
        if asked is not None:
            contents.append(int(places[asked - 1]) + 1 if asked else 0)
            labels.append(asked)
    if not contents:
        return 0.0, math.nan, math.nan
    return len(contents) / paths, float(np.median(contents)), float(np.median(labels))


def first_passing(
    outcomes: NDArray[np.int8], needed: float, evidence: Callable[[NDArray[np.int8]], float] = highest_log_e
) -> int | None:
    """Return after how many *outcomes* the evidence, which never falls, is enough, by bisection; None where never."""
    if evidence(outcomes) < needed:
        return None
    low, high = -1, len(outcomes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if evidence(outcomes[:middle]) >= needed else (middle, high)
    return high


def tally_of(gate: Gate, gains: tuple[float, ...], differ: float, lives: int, seed: int, alike: float = 0.0) -> Tally:
    """Live *lives* lives with one gate; every gate meets the same luck until it decides otherwise."""
    tally = Tally()
    for life in range(lives):
        live(np.random.default_rng([seed, life]), gate, gains, differ, alike, tally)
    return tally


def share(part: int, whole: int) -> str:
    """Return a share in percent, or a dash where there is nothing to share."""
    return f"{part / whole:.2%}" if whole else "-"


def main() -> None:
    """Simulate and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=2000)
    parser.add_argument("--paths", type=int, default=400, help="candidates for each row of the second table")
    parser.add_argument("--differ", type=float, default=0.12, help="share of contents on which the two differ")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = Console(width=200, highlight=False)
    out.print(f"{arguments.lives} lives of {CANDIDATES} candidates, {DAYS} days each, error of a life {ALPHA:.0%}\n")
    out.print(
        "| gate | candidates | lives with a promotion of one not better | of those not better | of those better |"
    )
    out.print("|---|---|---|---|---|")
    for told, gains, alike in SCENES:
        for name, gate in GATES.items():
            found = tally_of(gate, gains, arguments.differ, arguments.lives, arguments.seed, alike)
            out.print(
                f"| {name} | {told} | {share(found.spoiled, found.lives)} | "
                f"{share(found.not_better_promoted, found.not_better)} | {share(found.better_promoted, found.better)} |"
            )
    out.print("\n| hold-out | gain | contents that differ | promoted within 5,000 | draws, median | labels, median |")
    out.print("|---|---|---|---|---|---|")
    random = np.random.default_rng(arguments.seed)
    for gain, differ in ((0.04, 0.12), (0.04, 0.06), (0.02, 0.12), (0.02, 0.06), (0.01, 0.06), (0.0, 0.12)):
        for holdout in (HOLDOUT, 0):
            passed, contents, labels = price(random, gain, differ, arguments.paths, 5000, holdout)
            out.print(f"| {holdout:,} | {gain:+.1%} | {differ:.0%} | {passed:.1%} | {contents:,.0f} | {labels:,.0f} |")


if __name__ == "__main__":
    main()
