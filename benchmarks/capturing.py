"""What keeping predictions costs those who wait for answers, and whether every one of them is accounted for.

First two suites side by side, in turn, at full load: one that captures nothing, and one by the policy that is shipped,
with all that it makes of what it captures. Each is under that load for a while before it is measured, since what a rest
leaves of the budget for captures is spent at once. Then, in services of their own that capture sixty times as much,
what must not be noticed: the trainer stands still, is killed, or its disk is full (a small one, which root alone may
mount). No prediction may fail, and the books must balance: every answer is one that was not chosen, one that was
dropped, with its reason, or one that is a row in the trainer's database. The load comes from this process, which shares
the machine's processors with what it measures.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from sqlalchemy import func, select

from aimass.demo.pictures import share_out
from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.starter import MODEL
from benchmarks.images import Call, Figures, measure_suite
from benchmarks.suites import Suite, running_suite
from gateway.capture import SEND_SECONDS
from services.trainer.data.tables import PredictionRow
from services.trainer.feedback.counting import sum_counts
from services.trainer.storage.database import Database

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceAsyncStub

CALLERS = 8
NOTHING = "[capture]\nrandom_share = 0\nleast_random_share = 0\nlow_confidence_share = 0\nrare_class_share = 0\n"
MUCH = "[capture]\nrandom_share = 0.5\nsamples_per_second = 60\nburst = 200\n"
SPARED = MUCH + f"least_free_bytes = {2**60}\n"
TO_THE_LAST = MUCH + "least_free_bytes = 0\n"
DISK_BYTES = 512 * 1024
"""Of a disk that is full within seconds."""
SMALL_QUEUE = 256 * 1024
"""Bytes, so that a trainer that stands still for seconds is felt."""
MOST_P99, LEAST_RATE = 1.03, 0.97
"""With capture, of what is without."""
SETTLE_SECONDS = 60
"""In which what was captured must be on the trainer's disk, and its counts."""


def own_pictures() -> Iterator[bytes]:
    """Yield pictures for ever, all different for a good while: what is known already costs the trainer less."""
    return cycle([each.png for each in share_out().sent])


def distinct_call(stub: "GatewayServiceAsyncStub", pictures: Iterator[bytes]) -> Call:
    """Return a call that predicts the next picture, whichever it is given."""

    async def call(_: bytes) -> None:
        await stub.Predict(gateway_pb2.PredictRequest(model=MODEL, images=[next(pictures)]))

    return call


def write_policy(folder: Path, name: str, text: str) -> dict[str, str]:
    """Write a policy, and return the setting that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return {"TRAINER_POLICY": str(path)}


async def measure(mode: str, lead: float, seconds: float, rounds: int) -> dict[str, list[Figures]]:
    """Measure each suite in every round, forwards and backwards in turn, after *lead* seconds of the same load."""
    policies = {"nothing": NOTHING, "as shipped": ""}
    results: dict[str, list[Figures]] = {name: [] for name in policies}
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        calls: dict[str, tuple[Suite, Call]] = {}
        for number, (name, text) in enumerate(policies.items()):
            folder = Path(home) / str(number)
            suite = stack.enter_context(running_suite(mode, folder, **write_policy(folder, "policy", text)))
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}")
            stub: GatewayServiceAsyncStub = GatewayServiceStub(channel)
            calls[name] = suite, distinct_call(stub, own_pictures())
        for number in range(rounds):
            for name in policies if number % 2 else reversed(policies):
                suite, call = calls[name]
                await measure_suite(suite, call, [b""], lead, CALLERS)
                results[name].append(await measure_suite(suite, call, [b""], seconds, CALLERS))
    return results


@dataclass
class Seen:
    """What the callers of a suite met."""

    latencies: list[float] = field(default_factory=list)
    captured: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Books:
    """What became of all predictions of a suite, as its gateway and its trainer say."""

    answered: int
    """As the trainer was told."""
    chosen: int
    dropped: Counter[str]
    """By reason."""
    captured: int
    """As the trainer was told."""
    rows: int
    """In the trainer's database."""
    waiting: int
    """Bytes on their way."""

    @property
    def settled(self) -> bool:
        """Whether they agree with each other, and nothing is on its way."""
        return not self.waiting and self.chosen - self.dropped.total() == self.rows == self.captured

    def since(self, before: "Books") -> "Books":
        """Return what has been added."""
        dropped = self.dropped.copy()
        dropped.subtract(before.dropped)
        return Books(
            self.answered - before.answered,
            self.chosen - before.chosen,
            Counter({reason: count for reason, count in dropped.items() if count}),
            self.captured - before.captured,
            self.rows - before.rows,
            self.waiting,
        )

    def balance(self, seen: Seen) -> bool:
        """Whether they agree with what was *seen* from outside, too; what a disk lacks room for left as captured."""
        captured = self.rows + self.dropped["DISK_FULL"]
        return self.settled and self.answered == len(seen.latencies) and captured == seen.captured


async def call_until(
    done: asyncio.Event, stub: "GatewayServiceAsyncStub", pictures: Iterator[bytes], seen: Seen
) -> None:
    """Predict one picture after the other."""
    while not done.is_set():
        begin = time.perf_counter()
        try:
            answer = await stub.Predict(gateway_pb2.PredictRequest(model=MODEL, images=[next(pictures)]))
        except grpc.aio.AioRpcError as error:
            seen.failures.append(f"{error.code().name}: {error.details()}")
            continue
        seen.latencies.append(time.perf_counter() - begin)
        seen.captured += answer.results[0].prediction.captured


def trainer_pid(suite: Suite) -> int:
    """Return the process of the suite's trainer."""
    for pid in Path(f"/proc/{suite.pid}/task/{suite.pid}/children").read_text().split():
        if b"services.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    raise RuntimeError("the suite has no trainer")


async def leave_alone(suite: Suite, seconds: float) -> None:
    """Let everything run."""
    await asyncio.sleep(seconds)


async def stand_still(suite: Suite, seconds: float) -> None:
    """Stop the trainer's process in the middle third."""
    pid = trainer_pid(suite)
    await asyncio.sleep(seconds / 3)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds / 3)
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(seconds / 3)


async def kill(suite: Suite, seconds: float) -> None:
    """Kill the trainer's process after a third; the suite starts another."""
    await asyncio.sleep(seconds / 3)
    os.kill(trainer_pid(suite), signal.SIGKILL)
    await asyncio.sleep(2 * seconds / 3)


@dataclass(frozen=True)
class Scene:
    """What happens to a suite under load."""

    told: str
    policy: str
    happens: Callable[[Suite, float], Awaitable[None]]
    reason: str = ""
    """Why nothing at all may be captured; empty where something must be."""
    disk_bytes: int = 0
    """Of a disk of their own for the trainer's pictures; 0 for that of everything else."""


SCENES = (
    Scene("nothing happens", MUCH, leave_alone),
    Scene("the trainer stands still", MUCH, stand_still),
    Scene("the trainer is killed", MUCH, kill),
    Scene("less is free than the policy wants", SPARED, leave_alone, "PAUSED"),
    Scene("the disk fills up", TO_THE_LAST, leave_alone, disk_bytes=DISK_BYTES),
)


async def play(scene: Scene, suite: Suite, home: Path, seconds: float) -> tuple[Seen, Books]:
    """Keep a suite busy while *scene* happens, and return what was seen and what the books say when all has settled."""
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}", options=options) for _ in range(CALLERS)]
    stubs: list[GatewayServiceAsyncStub] = [GatewayServiceStub(each) for each in channels]
    pictures = own_pictures()
    while not (await _metrics(suite))["aimass_capture_decided"].total():  # it does not know yet what to capture
        await load(stubs, pictures, asyncio.sleep(0.1))
    before = await _settled_books(suite, home)
    seen = await load(stubs, pictures, scene.happens(suite, seconds))
    for channel in channels:
        await channel.close()
    return seen, (await _settled_books(suite, home)).since(before)


async def load(stubs: Sequence["GatewayServiceAsyncStub"], pictures: Iterator[bytes], until: Awaitable[None]) -> Seen:
    """Predict over each of *stubs* for as long as *until* takes."""
    done, seen = asyncio.Event(), Seen()
    calling = [asyncio.create_task(call_until(done, stub, pictures, seen)) for stub in stubs]
    await until
    done.set()
    await asyncio.gather(*calling)
    return seen


async def _settled_books(suite: Suite, home: Path) -> Books:
    """Return the books when nothing is on its way any more, or does not arrive."""
    for _ in range(SETTLE_SECONDS):
        if (await _read_books(suite, home)).settled:
            break
        await asyncio.sleep(1)
    await asyncio.sleep(2 * SEND_SECONDS)  # the last ones that were not chosen are counted too
    return await _read_books(suite, home)


async def _metrics(suite: Suite) -> dict[str, Counter[str]]:
    """Return the gateway's counters of capture, by name and by the label beside the model's."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{suite.metrics_port}/metrics")).text
    found: dict[str, Counter[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("aimass_capture"):
            counts = found.setdefault(family.name, Counter())
            for sample in family.samples:
                counts[sample.labels.get("strategy") or sample.labels.get("reason") or ""] += int(sample.value)
    return found


async def _read_books(suite: Suite, home: Path) -> Books:
    metrics = await _metrics(suite)
    answered, captured, rows = await asyncio.to_thread(_read_database, home)
    return Books(
        answered,
        metrics["aimass_capture_decided"].total(),
        metrics["aimass_capture_dropped"],
        captured,
        rows,
        metrics["aimass_capture_queue_bytes"].total(),
    )


def _read_database(home: Path) -> tuple[int, int, int]:
    """Return what the trainer was told is answered and captured, and how many rows it has."""
    database = Database(f"sqlite:///{home / 'trainer.db'}")
    try:
        counts = sum_counts(database, MODEL)
        with database.read() as session:
            rows = session.scalar(select(func.count()).select_from(PredictionRow)) or 0
    finally:
        database.close()
    return sum(each.answered for each in counts), sum(sum(each.captured.values()) for each in counts), rows


def report(results: dict[str, list[Figures]], mode: str, out: Console) -> bool:
    """Print the figures over those of the suite that captures nothing, and return whether they are near enough."""
    out.print(f"\n{mode}, gRPC x{CALLERS}, 32x32 PNG; medians and, in brackets, the least and the most of rounds\n")
    out.print("| captured | images/s | of nothing | p99 ms | of nothing | CPU us | of nothing |")
    out.print("|---|---|---|---|---|---|---|")
    held = True
    columns: Mapping[str, Callable[[Figures], float]] = {
        "rate": lambda each: each.images_per_second,
        "p99": lambda each: each.p99_ms,
        "cpu": lambda each: each.cpu_us,
    }
    for name, figures in results.items():
        cells = []
        for column, value in columns.items():
            own, other = list(map(value, figures)), list(map(value, results["nothing"]))
            ratios = sorted(one / two for one, two in zip(own, other, strict=True))
            ratio = statistics.median(ratios)
            cells.append(f"{statistics.median(own):.4g} | {ratio:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            if name == "as shipped":
                held &= column != "rate" or ratio >= LEAST_RATE
                held &= column != "p99" or ratio <= MOST_P99
        out.print(f"| {name} | {' | '.join(cells)} |")
    return held


def mount(stack: ExitStack, folder: Path, size: int) -> bool:
    """Have *folder* be a disk of *size* bytes, in memory, until *stack* ends; return whether that is allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode:
        return False
    stack.callback(lambda: subprocess.run(["umount", str(folder)], check=True))
    return True


async def disturb(seconds: float, out: Console) -> bool:
    """Play all scenes, print the books, and return whether nobody noticed and all of them balance."""
    out.print(f"\nservices, gRPC x{CALLERS}, {seconds:g} s each, a queue of {SMALL_QUEUE // 1024} KiB\n")
    out.print("| what happens | answered | failed | p99 ms | not chosen | dropped | rows | the books |")
    out.print("|---|---|---|---|---|---|---|---|")
    held = True
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            home = Path(folder)
            if scene.disk_bytes and not mount(stack, home / "blobs", scene.disk_bytes):
                out.print(f"| {scene.told} | not measured: this user may not mount a disk |")
                continue
            settings = write_policy(home, "policy", scene.policy)
            with running_suite("services", home, GATEWAY_CAPTURE_QUEUE_BYTES=str(SMALL_QUEUE), **settings) as suite:
                seen, books = await play(scene, suite, home, seconds)
        balanced = books.balance(seen)
        expected = not books.rows and set(books.dropped) == {scene.reason} if scene.reason else books.rows > 0
        held &= balanced and expected and not seen.failures
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(books.dropped.items())) or "0"
        out.print(
            f"| {scene.told} | {len(seen.latencies)} | {len(seen.failures)} | "
            f"{np.percentile(seen.latencies, 99) * 1e3:.1f} | {books.answered - books.chosen} | {dropped} | "
            f"{books.rows} | {'balance' if balanced else f'DIFFER: {books}'} |"
        )
        for failure, count in Counter(seen.failures).items():
            out.print(f"failed {count} times: {failure}")
    return held


def main() -> None:
    """Measure and report; end with 1 where capture costs too much, an answer failed or the books do not balance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", choices=("pipeline", "services"), nargs="*", default=["pipeline", "services"])
    parser.add_argument("--lead-seconds", type=float, default=40.0, help="load before each measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each suite; 0 leaves them out")
    parser.add_argument("--scene-seconds", type=float, default=15.0, help="length of each scene; 0 leaves them out")
    options = parser.parse_args()
    out, held = Console(width=200, highlight=False), True
    for mode in options.modes if options.rounds else ():
        held &= report(uvloop.run(measure(mode, options.lead_seconds, options.seconds, options.rounds)), mode, out)
    if options.scene_seconds:
        held &= uvloop.run(disturb(options.scene_seconds, out))
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
