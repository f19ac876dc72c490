"""What two workers that never wait learn beside training in step, from the same images; accuracy over seeds.

Recipe `quick` on the slice. All ways see the same batches: one process alone, two workers that average every gradient,
two with local steps, and two with local steps of whom one is killed midway, each started as the service starts it.
Measured on the 1,000 test and the 500 validation images together: the accuracy of one run is known to about 1.1 points.
"""

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from services.common.manifest import GRAPH_FILE
from services.trainer.clock import now
from services.trainer.data.datasets import Dataset, load_dataset
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.recipes import make_options
from services.trainer.runs.folder import LOG_FILE, PROGRESS_FILE, RunFolder
from services.trainer.runs.launcher import LocalLauncher
from services.trainer.runs.progress import read_epochs
from services.trainer.runs.record import Request, RunKind

LOCAL = {"count": 2, "synchronisation": "local-steps"}
KILLED = "local steps, one of 2 killed"
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "every step, 2 workers": {"count": 2},
    "local steps, 2 workers": LOCAL,
    "local steps as in DiLoCo": {**LOCAL, "local_steps": 20, "outer_learning_rate": 0.7, "outer_momentum": 0.9},
    KILLED: LOCAL,
}
VALIDATION = 0.1
LOOK_SECONDS = 0.05


def train(folder: RunFolder, *, kill_after: int = 0) -> float:
    """Let the run in *folder* come to its end, and return how long it took.

    Args:
        folder: Of a run.
        kill_after: Epoch after which one of its workers is killed; 0 is never.
    """
    begin = time.monotonic()
    command = LocalLauncher({}).command(folder, folder.request().options)
    with (folder / LOG_FILE).open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while kill_after and read_epochs(folder / PROGRESS_FILE) < kill_after:
            time.sleep(LOOK_SECONDS)
        if kill_after:
            os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        process.wait()
    return time.monotonic() - begin


def workers_of(pid: int) -> list[int]:
    """Return the processes that the process of a run with local steps has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def read_slice() -> Dataset:
    """Return what every run learns from and is measured on."""
    options = make_options("quick", {"validation_fraction": VALIDATION})
    return load_dataset(options, DataSources(data=Path(), roots=(), database=None, blobs=Path()))


def accuracy(folder: RunFolder, judged: Samples) -> float:
    """Return the share of *judged* that the run's graph names rightly."""
    probabilities = run_graph(open_graph(folder / GRAPH_FILE, threads=0), judged.images, batch_size=100)
    return float((probabilities.argmax(axis=1) == judged.labels).mean())


def row(name: str, found: list[float], alone: list[float], seconds: list[float]) -> str:
    """Return a row of the table; seeds are compared one by one."""
    gaps = [100 * (one - other) for one, other in zip(found, alone, strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return (
        f"| {name} | {statistics.mean(found):.1%} ± {100 * statistics.stdev(found):.1f} "
        f"| {statistics.mean(gaps):+.1f} ± {error:.1f} | {statistics.median(seconds):.0f} |"
    )


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    dataset = read_slice()
    judged = Samples.joined(dataset.test, dataset.validation)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as root:
        for seed in range(arguments.seeds):  # all ways of a seed together: the machine may have other things to do
            for name, workers in WAYS.items():
                overrides = {
                    "epochs": arguments.epochs,
                    "seed": seed,
                    "validation_fraction": VALIDATION,
                    "workers": workers,
                }
                options = make_options("quick", overrides)
                folder = RunFolder(Path(root) / f"{len(found[name])}-{list(WAYS).index(name)}")
                folder.create(Request(id=folder.path.name, kind=RunKind.TRAINING, options=options, create_time=now()))
                half = arguments.epochs // 2 if name == KILLED else 0
                seconds[name].append(train(folder, kill_after=half))
                found[name].append(accuracy(folder, judged))
                print(f"{name}, seed {seed}: {found[name][-1]:.1%}", flush=True)
    print(f"\n| {arguments.epochs} epochs, {arguments.seeds} seeds | accuracy | points against alone | seconds |")
    print("|---|---|---|---|")
    for name in WAYS:
        print(row(name, found[name], found["alone"], seconds[name]))


if __name__ == "__main__":
    main()
