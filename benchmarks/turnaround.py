"""How long it takes from the label that begins a cycle to the first answer by the version that has learnt from it.

The demonstration's weak model, its users at 25 pictures a second, its reviewer and its policy, except that a cycle may
begin at once after another. The model is trained once; each life is a suite that begins with it. The times are those of
the loop's own log; that of the label is when its sample was made, and that of the first answer when a user had it. The
users run in this process, which shares the machine's processors with the suite.
"""

import argparse
import asyncio
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from sqlalchemy import select

from aimass.client import Prediction
from aimass.demo.pictures import Picture, Pictures, share_out
from aimass.demo.record import Happened, Record
from aimass.demo.story import PER_SECOND, POLICY, prepare
from aimass.demo.suite import Suite
from aimass.demo.users import REVIEWER, Crowd, Reviewer, make_keys, together
from services.trainer.data.tables import SampleRow
from services.trainer.storage.database import Database

EAGER = re.compile("least_gap_minutes = .*")
MOST_SECONDS = 60.0
"""To the first answer, in the median."""
LABEL, FIRST_ANSWER = "label", "first answer by it"
STAGES = {
    "cycle.started": "the label is seen",
    "snapshot.made": "samples are chosen",
    "run.created": "a run is asked for",
    "run.ended": "the last layer is fitted and measured",
    "candidate.published": "the version is published",
    "gate.decided": "the gate has decided",
    "shadow.ended": "the shadow has ended",
    FIRST_ANSWER: "a user has its first answer",
    "promoted": "it answers everything",
}
"""What has happened when each kind of event is written."""


class WatchedCrowd(Crowd):
    """Users who remember when they first had an answer of each version.

    Attributes:
        first: By version, seconds since the record began.
    """

    def __init__(self, record: Record, address: str, keys: dict[str, str], pictures: Sequence[Picture]) -> None:
        super().__init__(address, keys, pictures, PER_SECOND)
        self._record = record
        self.first: dict[int, float] = {}

    async def _predict(self, picture: Picture, name: str) -> Prediction | None:
        prediction = await super()._predict(picture, name)
        if prediction is not None:
            self.first.setdefault(prediction.version, time.time() - self._record.begin)
        return prediction


@dataclass(frozen=True)
class Turn:
    """One cycle that came to its end."""

    outcome: str
    times: dict[str, float]
    """Seconds since the record began, of the label, of each event, of the first answer."""


async def live(suite: Suite, home: Path, pictures: Pictures, seconds: float) -> tuple[list[Turn], Crowd]:
    """Let users come for so many *seconds*, and return the cycles that ended meanwhile."""
    stop = asyncio.Event()
    record = Record(lambda event: None)
    keys = await make_keys(suite.address)
    crowd = WatchedCrowd(record, suite.address, keys, pictures.sent)
    reviewer = Reviewer(suite.address, keys[REVIEWER], pictures.sent)
    works = record.follow(suite.address, stop), crowd.run(stop), reviewer.run(stop)
    await together(stop, *works, until=asyncio.sleep(seconds))
    cycles = sorted({event.cycle for event in record.events if event.kind == "cycle.ended"})
    turns = [_turn([event for event in record.events if event.cycle == cycle], record, crowd, home) for cycle in cycles]
    return turns, crowd


def _turn(events: Sequence[Happened], record: Record, crowd: WatchedCrowd, home: Path) -> Turn:
    times = {event.kind: event.seconds for event in events if event.kind in STAGES}
    times[LABEL] = _label_before(home, record, times["cycle.started"])
    for event in events:
        if event.kind == "candidate.published" and event.payload["version"] in crowd.first:
            times[FIRST_ANSWER] = crowd.first[event.payload["version"]]
    return Turn(str(events[-1].payload["outcome"]), times)


def _label_before(home: Path, record: Record, seconds: float) -> float:
    """Return when the last sample was made that the cycle which began at *seconds* can have counted."""
    database = Database(f"sqlite:///{home / 'trainer.db'}")
    try:
        with database.read() as session:
            made = [datetime.fromisoformat(at).timestamp() for at in session.scalars(select(SampleRow.create_time))]
    finally:
        database.close()
    return max((each - record.begin for each in made if each - record.begin <= seconds), default=seconds)


def report(turns: Sequence[Turn], out: Console) -> bool:
    """Print how long each stage took, and return whether the whole is short enough."""
    promoted = [turn.times for turn in turns if turn.outcome == "PROMOTED"]
    out.print(f"\n{len(promoted)} of {len(turns)} cycles promoted; seconds of these\n")
    out.print("| until | median | 10 % to 90 % | longest | since the label, median |")
    out.print("|---|---|---|---|---|")
    for kind, told in STAGES.items():
        whole = [times for times in promoted if kind in times]
        if not whole:
            continue
        took = [times[kind] - max(each for each in times.values() if each < times[kind]) for times in whole]
        since = [times[kind] - times[LABEL] for times in whole]
        low, median, high = np.quantile(took, [0.1, 0.5, 0.9])
        out.print(f"| {told} | {median:.1f} | {low:.1f} to {high:.1f} | {max(took):.1f} | {np.median(since):.1f} |")
    answered = [times[FIRST_ANSWER] - times[LABEL] for times in promoted if FIRST_ANSWER in times]
    if not answered:
        return False
    low, median, high, most = np.quantile(answered, [0.1, 0.5, 0.9, 1])
    out.print(
        f"\nFrom the label to the first answer: median {median:.1f} s, 10 % {low:.1f} s, 90 % {high:.1f} s, "
        f"longest {most:.1f} s"
    )
    return bool(median <= MOST_SECONDS)


def main() -> None:
    """Let suites live, and print a table in Markdown; end with 1 where a request failed or it took too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=5, help="suites, one after the other")
    parser.add_argument("--seconds", type=float, default=180.0, help="that users come in each of them")
    parser.add_argument("--mode", choices=("pipeline", "services"), default="services")
    options = parser.parse_args()
    out, pictures = Console(width=200, highlight=False), share_out()
    turns: list[Turn] = []
    failed = answered = 0
    with tempfile.TemporaryDirectory() as folder:
        home, trained, policy = (Path(folder) / name for name in ("home", "trained", "policy.toml"))
        policy.write_text(EAGER.sub("least_gap_minutes = 0.01", POLICY.read_text()))
        settings = {"TRAINER_POLICY": str(policy)}
        home.mkdir()
        prepare(Suite(home, options.mode, settings), home, pictures)
        home.rename(trained)
        for _ in range(options.lives):
            shutil.copytree(trained, home)
            suite = Suite(home, options.mode, settings)
            suite.start()
            try:
                found, crowd = asyncio.run(live(suite, home, pictures, options.seconds))
            finally:
                suite.stop()
            shutil.rmtree(home)
            turns += found
            failed, answered = failed + crowd.counts["failed"], answered + crowd.counts["answered"]
    out.print(f"{options.mode}, {options.lives} suites of {options.seconds:g} s, {answered} answers, {failed} failed")
    outcomes = Counter(turn.outcome for turn in turns)
    out.print("cycles: " + (", ".join(f"{count} {name}" for name, count in outcomes.items()) or "none ended"))
    held = report(turns, out)
    raise SystemExit(0 if held and not failed else 1)


if __name__ == "__main__":
    main()
