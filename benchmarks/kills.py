"""Runs of training that are killed with SIGKILL at random moments, beside one that is left in peace.

After each kill, every file that is not written aside is read whole; what the process had told of finished epochs must
still be there after the next start, and no finished epoch may be done again. When a run comes to its end, its curve
and its answers must be those of the run in peace, to the last bit. Runs follow each other until the kills are enough.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import torch

from services.common.manifest import GRAPH_FILE, Manifest
from services.trainer.clock import now
from services.trainer.data import slices
from services.trainer.evaluation.card import ModelCard
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.recipes import make_options
from services.trainer.runs.folder import (
    BEST_FILE,
    CHECKPOINT_FILE,
    LOG_FILE,
    PROGRESS_FILE,
    WEIGHTS_FILE,
    RunFolder,
)
from services.trainer.runs.progress import Progress, finished_epochs, iterate_progress
from services.trainer.runs.record import Request, RunKind, RunState

CLOCK = {"seconds", "images_per_second", "steps_per_second"}
"""Figures that may differ."""
READERS: dict[str, Callable[[Path], object]] = {
    "model.onnx": lambda path: onnx.checker.check_model(onnx.load(path), full_check=True),
    "model.json": lambda path: Manifest.from_json(path.read_bytes(), path.name),
    "card.json": lambda path: ModelCard.model_validate_json(path.read_bytes()),
    **dict.fromkeys((CHECKPOINT_FILE, BEST_FILE, WEIGHTS_FILE), lambda path: torch.load(path, weights_only=True)),
}


def create(path: Path, epochs: int) -> RunFolder:
    """Write down a run of recipe `quick` whose best epoch is kept and whose weights are averaged."""
    options = make_options("quick", {"epochs": epochs, "keep": "best", "average_decay": 0.99})
    folder = RunFolder(path)
    folder.create(Request(id=path.name, kind=RunKind.TRAINING, options=options, create_time=now()))
    return folder


def start(folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start the process of a run as the service does."""
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.trainer.jobs", str(folder.path)], stdout=log, stderr=log
        )


def entries_of(folder: RunFolder) -> list[Progress]:
    """Return what the run has told so far."""
    return list(iterate_progress(folder / PROGRESS_FILE))


def curve_of(entries: list[Progress]) -> dict[int, dict[str, float]]:
    """Return the figures of each finished epoch that are not of the clock."""
    return {
        number: {name: value for name, value in entry.figures.items() if name not in CLOCK}
        for number, entry in finished_epochs(entries).items()
    }


def result_of(folder: RunFolder) -> tuple[dict[int, dict[str, float]], bytes]:
    """Return the curve of a finished run, and what its graph says of the test images, bit by bit."""
    session = open_graph(folder / GRAPH_FILE, threads=1)
    probabilities = run_graph(session, slices.read_slice()[1].images, batch_size=100)
    return curve_of(entries_of(folder)), probabilities.tobytes()


def check_files(folder: RunFolder) -> None:
    """Read every file that somebody may take for whole.

    Raises:
        Exception: One is not; whatever its reader says.
    """
    for name, read in READERS.items():
        if (folder / name).exists():
            read(folder / name)
    folder.outcome()


def finish(folder: RunFolder) -> float:
    """Let the run come to its end; return the seconds that it took."""
    begin = time.monotonic()
    with start(folder) as process:
        process.wait()
    outcome = folder.outcome()
    if outcome is None or outcome.state is not RunState.SUCCEEDED:
        raise RuntimeError(f"{folder.path.name} ended with {outcome}, see {folder / LOG_FILE}")
    return time.monotonic() - begin


def kill_once(folder: RunFolder, after: float) -> str:
    """Start the run's process, kill it *after* seconds and see what is left; return the stage that it was in.

    It is empty where the process had come to its end before.
    """
    entries = entries_of(folder)
    finished, told = max(curve_of(entries), default=0), len(entries)
    with start(folder) as process:
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        return ""
    check_files(folder)
    new = entries_of(folder)[told:]
    again = [entry.epoch for entry in new if entry.kind == "step" and entry.epoch <= finished]
    if again:
        raise RuntimeError(f"epochs {again} of {folder.path.name} were finished, and done again")
    return new[-1].stage if new else "start"


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    moments = random.Random(seed)
    stages: Counter[str] = Counter()
    ended = 0
    with tempfile.TemporaryDirectory() as root:
        peaceful = create(Path(root) / "peaceful", options.epochs)
        seconds = finish(peaceful)
        print(f"{options.epochs} epochs in peace: {seconds:.0f} s; seed {seed}", flush=True)
        expected = result_of(peaceful)
        while stages.total() < options.kills:
            folder = create(Path(root) / f"killed-{ended}", options.epochs)
            while folder.outcome() is None and stages.total() < options.kills:
                stage = kill_once(folder, moments.uniform(0, seconds))
                if stage:
                    stages[stage] += 1
                    epochs = len(curve_of(entries_of(folder)))
                    print(f"kill {stages.total()}: in stage {stage}, {epochs} epochs are finished", flush=True)
            if folder.outcome() is None:
                finish(folder)
            if result_of(folder) != expected:
                raise RuntimeError(f"{folder.path.name} has another curve or another graph than the run in peace")
            ended += 1
    where = ", ".join(f"{count} in {stage}" for stage, count in stages.most_common())
    print(f"{stages.total()} kills: {where}")
    print(f"{ended} runs came to their ends, each with the curve and the probabilities of the run in peace")


if __name__ == "__main__":
    main()
