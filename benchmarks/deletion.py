"""What is left of a contributor who is deleted while the suite serves, and how long each stage takes.

The demonstration's suite, users and reviewer. One of the users sends pictures that nobody else has; once a version that
has learnt from these serves, the contributor is deleted. Then every file of the suite's home (database, its journal,
blobs, runs, versions, logs) is searched for the compressed bytes of those pictures and for the name, by this program
and not by the suite's own report. The users who stay go on all the time.
"""

import argparse
import asyncio
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from aimass.client import AsyncClient, PredictionError
from aimass.demo.pictures import Picture, Pictures, share_out
from aimass.demo.record import Happened, Record
from aimass.demo.story import PER_SECOND, POLICY, prepare
from aimass.demo.suite import Suite
from aimass.demo.users import MODEL, REVIEWER, Crowd, Reviewer, make_keys, together
from aimass.trainer.v1 import loop_pb2
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from services.common.channels import open_channel

LEAVES = "cleo"
NAME = re.compile(rb"(?<![A-Za-z])cleo(?![A-Za-z])")
PICTURES = 60
"""Of the one who leaves."""
DELETION = "benchmark-1"
SAMPLE_BYTES = 64
"""Of a compressed picture, by which it is found."""
STAGES = {
    "deletion.erased": "pictures, words, rows and features are gone",
    "cycle.started": "a successor is begun",
    "run.ended": "it is trained",
    "gate.decided": "the gate has decided",
    "promoted": "it answers everything",
    "deletion.completed": "what had learnt from them is gone",
}


class LeavingCrowd(Crowd):
    """Users of whom one sends own pictures, and leaves when told."""

    def __init__(
        self, address: str, keys: dict[str, str], pictures: Sequence[Picture], own: Sequence[Picture], per_second: float
    ) -> None:
        super().__init__(address, keys, pictures, per_second)
        self._own = itertools.cycle(own)
        self.left = False

    async def _use(self, picture: Picture, name: str) -> None:
        if name != LEAVES:
            await super()._use(picture, name)
        elif not self.left:
            await super()._use(next(self._own), name)


async def live(suite: Suite, home: Path, pictures: Pictures, out: Console) -> tuple[dict[str, float], bool]:
    """Delete one who has taught a version, and return seconds by kind of event, and whether all held."""
    stop, record = asyncio.Event(), Record(lambda event: None)
    keys = await make_keys(suite.address)
    own, shared = pictures.sent[:PICTURES], pictures.sent[PICTURES:]
    crowd = LeavingCrowd(suite.address, keys, shared, own, PER_SECOND)
    reviewer = Reviewer(suite.address, keys[REVIEWER], pictures.sent)
    times: dict[str, float] = {}
    held: dict[str, bool] = {}

    async def scene() -> None:
        await record.wait_for(_is("promoted"))
        crowd.left = True
        taught = record.serving[-1][1]
        pictures_before, names_before = await asyncio.to_thread(search, home, own)
        out.print(f"version {taught} serves; {pictures_before} pictures found, the name in {names_before}")
        async with open_channel(suite.address) as channel:
            stub = LoopServiceStub(channel)
            asked, after = time.time() - record.begin, len(record.events)
            request = loop_pb2.DeleteContributorRequest(contributor=LEAVES, request_id=DELETION)
            await stub.DeleteContributor(request)
            for kind in STAGES:
                event = await record.wait_for(_is(kind), after)
                times[kind] = event.seconds - asked
            found = (await stub.GetDeletion(loop_pb2.GetDeletionRequest(id=DELETION))).deletion
        report = json.loads(found.report_json)
        pictures_left, names_left = await asyncio.to_thread(search, home, own)
        out.print(f"afterwards {pictures_left}, the name in {names_left}; the suite's own search: {report['search']}")
        out.print(f"removed: {report['models'][MODEL]['removed']}, tainted versions: {list(found.tainted_versions)}")
        held["pictures and name were there before"] = pictures_before > 0 and bool(names_before)
        held["no picture is left in any file"] = pictures_left == 0
        held["the name is left in no file"] = not names_left
        held["the suite's report finds nothing"] = not report["search"]["found"]
        held["the version was tainted"] = taught in found.tainted_versions
        held["its folder is gone"] = not (home / "models" / MODEL / str(taught)).exists()
        held["it is not served"] = await _is_refused(suite.address, keys[REVIEWER], own[0], taught)

    works = record.follow(suite.address, stop), crowd.run(stop), reviewer.run(stop)
    await together(stop, *works, until=scene())
    held["no request failed"] = not crowd.counts["failed"]
    out.print(f"{crowd.counts['answered']} answers, {crowd.counts['failed']} failed {crowd.failures[:3]}")
    for name, holds in held.items():
        out.print(f"  {'holds' if holds else 'FAILS'}  {name}")
    return times, all(held.values())


def search(home: Path, own: Sequence[Picture]) -> tuple[int, list[str]]:
    """Return how many of *own* pictures are in files of *home*, as they were sent, and the files that hold the name."""
    middles = {each.png[len(each.png) // 2 :][:SAMPLE_BYTES] for each in own}
    found: set[bytes] = set()
    named: list[str] = []
    for path in home.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # gone meanwhile
            continue
        found |= {middle for middle in middles - found if middle in data}
        if NAME.search(data):
            named.append(str(path.relative_to(home)))
    return len(found), named


def _is(kind: str) -> Callable[[Happened], bool]:
    return lambda event: event.kind == kind


async def _is_refused(address: str, key: str, picture: Picture, version: int) -> bool:
    client = AsyncClient(address, key)
    try:
        await client.predict(picture.png, MODEL, version=version)
    except PredictionError as error:
        return error.code == "NOT_FOUND"
    finally:
        await client.close()
    return False


def main() -> None:
    """Delete somebody in each of some suites, and print a table in Markdown; end with 1 where something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=3, help="suites, one after the other")
    parser.add_argument("--mode", choices=("pipeline", "services"), default="services")
    options = parser.parse_args()
    out, pictures = Console(width=200, highlight=False), share_out()
    lives: list[dict[str, float]] = []
    held = True
    for _ in range(options.lives):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            suite = Suite(home, options.mode, {"TRAINER_POLICY": str(POLICY)})
            prepare(suite, home, pictures)
            suite.start()
            try:
                times, holds = asyncio.run(live(suite, home, pictures, out))
            finally:
                suite.stop()
        lives.append(times)
        held = held and holds
    out.print(f"\n{options.mode}, {options.lives} suites\n\n| until | seconds since it was asked, median | longest |")
    out.print("|---|---|---|")
    for kind, told in STAGES.items():
        took = [times[kind] for times in lives]
        out.print(f"| {told} | {np.median(took):.1f} | {max(took):.1f} |")
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
