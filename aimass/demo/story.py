"""The demonstration from beginning to end."""

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.markup import escape

from aimass.demo.chart import draw
from aimass.demo.checks import check
from aimass.demo.pictures import Pictures, share_out, write_folder
from aimass.demo.record import Happened, Record
from aimass.demo.referee import Referee
from aimass.demo.suite import Suite
from aimass.demo.users import MODEL, REVIEWER, Crowd, Reviewer, make_keys, together, when_there
from aimass.trainer.v1 import loop_pb2
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from services.common.channels import open_channel
from services.common.errors import InvalidInput
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Graph, Manifest, digest_of
from services.trainer.export.tail import find_tail, replace_tail
from services.trainer.publishing import publish_version
from services.trainer.statistics.heads import Head

POLICY = Path(__file__).with_name("policy.toml")
WEAK_RUN = "weak"
EPOCHS = 10
MOST_SECONDS = 900.0
"""A suite that has not promoted anything by then will not."""
PER_SECOND = 25.0
"""Pictures that users send."""


def run_demo(out: Console, home: Path | None, mode: str, kills: float) -> bool:
    """Play the demonstration as `aimass demo --help` says.

    Returns:
        Whether everything held that must.
    """
    home = Path(tempfile.mkdtemp(prefix="aimass-demo-")) if home is None else home
    home.mkdir(parents=True, exist_ok=True)
    if any(home.iterdir()):
        raise InvalidInput(f"{home} is not empty; name a new folder for the demonstration")
    pictures = share_out()
    suite = Suite(home, mode, {"TRAINER_POLICY": str(POLICY)})
    _say(out, "training a weak model on a part of the pictures; it sees next to no automobiles and trucks")
    prepare(suite, home, pictures)
    _say(out, f"starting the suite ({mode}) in {home}")
    suite.start()
    try:
        _say(out, f"it is ready: {suite.url}")
        return asyncio.run(_play(out, suite, home, pictures, kills))
    finally:
        suite.stop()


def prepare(suite: Suite, home: Path, pictures: Pictures, epochs: int = EPOCHS) -> None:
    """Train the weak model and put it where the suite finds its first model."""
    folder = home / "data" / "first"
    write_folder(pictures, folder)
    sizes = ["--set", "pixels.width=32", "--set", "pixels.height=32"]
    options = ["--set", f"epochs={epochs}", *sizes]
    suite.command("train", "quick", "--data", str(folder), "--run-id", WEAK_RUN, *options)
    version = home / "models" / MODEL / "1"
    version.mkdir(parents=True)
    for name in (GRAPH_FILE, MANIFEST_FILE):
        shutil.copy2(home / "runs" / WEAK_RUN / name, version)


async def _play(out: Console, suite: Suite, home: Path, pictures: Pictures, kills: float) -> bool:
    stop = asyncio.Event()
    record = Record(lambda event: _show(out, event))
    referee = Referee(suite.address, pictures.referee)
    record.serving.append((0.0, 1))
    _say(out, f"the weak model is right in {await referee.measure(1):.1%} of {len(pictures.referee)} pictures")
    keys = await make_keys(suite.address)
    crowd = Crowd(suite.address, keys, pictures.sent, PER_SECOND)
    reviewer = Reviewer(suite.address, keys[REVIEWER], pictures.sent)
    scenes = _Scenes(out, suite, home, record, referee)
    works = [record.follow(suite.address, stop), crowd.run(stop), reviewer.run(stop)]
    if kills:
        works.append(_kill(out, suite, kills, stop))
    try:
        async with asyncio.timeout(MOST_SECONDS):
            await together(stop, *works, until=scenes.play())
    except TimeoutError:
        _say(out, f"not all of it has happened within {MOST_SECONDS:.0f} s; the log says why: {suite.log}")
    for version in sorted({version for _, version in record.serving}):
        await referee.measure(version)
    draw(record, referee.accuracies, home / "demo.svg", home / "demo.png")
    await asyncio.to_thread(suite.stop)
    findings = check(home, record, crowd, referee, scenes.refused)
    _write(home / "demo.json", record, referee, crowd, findings)
    for name, holds in findings.items():
        out.print(f"  [{'green' if holds else 'red'}]{'holds' if holds else 'FAILS'}[/]  {name}", highlight=False)
    _say(out, f"picture: {home / 'demo.png'}; figures: {home / 'demo.json'}; log: {suite.log}")
    return all(findings.values())


async def _kill(out: Console, suite: Suite, seconds: float, stop: asyncio.Event) -> None:
    """End a service at random every so many seconds."""
    chance = np.random.default_rng(0)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
            return
        service = str(chance.choice(sorted(suite.pids())))
        _say(out, f"kill -9 of {service}")
        with contextlib.suppress(ProcessLookupError):  # it is just being started again
            suite.kill(service)


class _Scenes:
    """What is waited for, and the three things that a person does."""

    def __init__(self, out: Console, suite: Suite, home: Path, record: Record, referee: Referee) -> None:
        self._out = out
        self._suite = suite
        self._home = home
        self._record = record
        self._referee = referee
        self.refused = 0
        """The spoilt version."""

    async def play(self) -> None:
        """Wait for promotions that nobody asked for; between them, a person goes back, and proposes what is worse."""
        first = await self._next_promotion(0)
        await self._go_back()
        await self._next_promotion(first)
        await self._propose_worse()

    async def _next_promotion(self, after: int) -> int:
        """Wait for a promotion and the end of its cycle, which comes with it, and return the number of the latter."""
        promoted = await self._record.wait_for(lambda event: event.kind == "promoted", after)
        version = self._record.serving[-1][1]
        accuracy = await self._referee.measure(version)
        _say(self._out, f"version {version} serves, and is right in {accuracy:.1%}: nobody touched anything")
        ended = await self._record.wait_for(lambda event: event.kind == "cycle.ended", promoted.number)
        return ended.number

    async def _go_back(self) -> None:
        """Go back to the version before with one call."""
        _say(self._out, "one call rolls back; the loop goes on from there")
        after = len(self._record.events)
        async with open_channel(self._suite.address) as channel:
            request = loop_pb2.RollBackRequest(model=MODEL, reason="the demonstration", request_id="demonstration-1")
            await when_there(partial(LoopServiceStub(channel).RollBack, request))
        await self._record.wait_for(lambda event: event.kind == "rolled_back", after)

    async def _propose_worse(self) -> None:
        """Publish a version whose answers are turned round, and put it to the gate."""
        _say(self._out, "somebody publishes a version that confuses all classes, and proposes it")
        version = self.refused = await publish_spoilt(self._suite, self._home)
        after = len(self._record.events)
        async with open_channel(self._suite.address) as channel:
            request = loop_pb2.ProposeVersionRequest(
                model=MODEL, version=version, goal=loop_pb2.Cycle.GOAL_BETTER, request_id=f"propose-{version}"
            )
            await when_there(partial(LoopServiceStub(channel).ProposeVersion, request))
        proposed = await self._record.wait_for(_begins_with(version), after)
        await self._record.wait_for(lambda event: event.kind == "cycle.ended", proposed.number)


def _begins_with(version: int) -> Callable[[Happened], bool]:
    return lambda event: event.kind == "cycle.started" and event.payload.get("candidate") == version


async def publish_spoilt(suite: Suite, home: Path) -> int:
    """Publish the weak model with its classes turned round by one, without traffic, and return its version."""
    folder = home / "spoilt"
    folder.mkdir(exist_ok=True)
    first = home / "models" / MODEL / "1"
    head = find_tail(first / GRAPH_FILE).head
    bias = None if head.bias is None else np.roll(head.bias, 1)
    turned = Head(np.roll(head.weight, 1, axis=0), bias, head.temperature)
    replace_tail(first / GRAPH_FILE, folder / GRAPH_FILE, turned, {})
    manifest = Manifest.from_json((first / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    data = (folder / GRAPH_FILE).read_bytes()
    graph = Graph(sha256=digest_of(data), size_bytes=len(data))
    spoilt = manifest.model_copy(update={"graph": graph, "golden": None})
    (folder / MANIFEST_FILE).write_text(spoilt.model_dump_json())
    with grpc.insecure_channel(suite.inference_address) as channel:
        return (await asyncio.to_thread(publish_version, channel, MODEL, folder)).version


def _show(out: Console, event: Happened) -> None:
    """Print what a person would want to know of an event."""
    words = _WORDS.get(event.kind)
    if words is not None:
        out.print(f"  [dim]{event.seconds:6.1f} s[/]  {escape(words(event.payload))}", highlight=False)


def _ruling(payload: dict[str, Any]) -> str:
    ruling = payload.get("ruling", {})
    figure, bound = ruling.get("figure"), ruling.get("bound")
    compared = "" if figure is None or bound is None else f", {figure:.3g} against {bound:.3g}"
    return " ".join(filter(None, (ruling.get("rule"), ruling.get("subject")))) + compared


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "cycle.started": lambda payload: f"a cycle begins: {payload['reason']}",
    "snapshot.made": lambda payload: f"samples chosen: {payload['counts']}",
    "run.created": lambda payload: f"training: {payload['strategy']}",
    "run.ended": lambda payload: f"trained: {payload['state']} {payload.get('rule', '')}",
    "action.failed": lambda payload: f"{payload['action']} failed: {payload['rule']}",
    "candidate.published": lambda payload: f"version {payload['version']} published, without traffic",
    "gate.decided": lambda payload: f"the gate: {payload['outcome']} by {_ruling(payload)}",
    "shadow.started": lambda payload: "the candidate runs along in the shadow",
    "shadow.ended": lambda payload: f"the shadow: {payload['verdict']} {_ruling(payload)}",
    "canary.moved": lambda payload: "the candidate answers a share of the traffic",
    "canary.ended": lambda payload: f"the canary: {payload['verdict']} {_ruling(payload)}",
    "promoted": lambda payload: "the candidate answers everything",
    "rolled_back": lambda payload: "the version before answers everything",
    "cycle.ended": lambda payload: f"the cycle ends: {payload['outcome']} {_ruling(payload)}",
    "alarm.raised": lambda payload: f"alarm of {payload['detector']}",
}


def _say(out: Console, sentence: str) -> None:
    out.print(f"[bold]{escape(sentence)}[/]", highlight=False)


def _write(path: Path, record: Record, referee: Referee, crowd: Crowd, findings: Mapping[str, bool]) -> None:
    document = {
        "accuracies": referee.accuracies,
        "serving": record.serving,
        "counts": dict(crowd.counts),
        "failures": crowd.failures[:20],
        "findings": dict(findings),
        "events": [asdict(each) for each in record.events],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
