"""The process of a run imports what its kind needs and no more: torch alone takes seconds and half a gigabyte."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.jobs.__main__ import RUN, job_function
from services.trainer.jobs.reporting import TENSORBOARD_FOLDER, Reporter
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import RunKind
from services.trainer.training.results import StepResult

STEP = StepResult(
    step=1, steps=2, epoch=1, train_loss=2.0, learning_rate=0.1, images_per_second=10.0, steps_per_second=1.0
)


def imported(modules: str, *heavy: str) -> list[str]:
    """Return which of the *heavy* packages come along when *modules* are imported in a new process."""
    code = f"import sys, {modules}; print(*(name for name in {heavy} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_a_run_begins_and_a_graph_is_described_without_torch() -> None:
    modules = ("__main__", "job", "failures", "product", "reporting", "sources", "origins", "refit")

    heavy = imported(
        ", ".join(f"services.trainer.jobs.{module}" for module in modules),
        *("torch", "torchvision", "tensorboard", "optuna", "sklearn"),
    )

    assert heavy == []


def test_networks_of_our_own_are_built_without_torchvision() -> None:
    modules = "services.trainer.networks.weights, services.trainer.networks.building"

    assert imported(modules, "torch", "torchvision", "tensorboard") == ["torch"]


def test_every_kind_of_run_has_a_function() -> None:
    assert set(RUN) == set(RunKind)
    assert [job_function(kind).__name__ for kind in RUN] == [name.partition(":")[2] for name in RUN.values()]


@pytest.mark.parametrize("steps", [0, 1])
def test_event_files_are_begun_with_the_first_figure(steps: int, tmp_path: Path) -> None:
    with Reporter(RunFolder(tmp_path)) as reporter:
        reporter.stage("prepare")
        for _ in range(steps):
            reporter.step(STEP)

    events = tmp_path / TENSORBOARD_FOLDER
    assert len(list(events.iterdir()) if events.exists() else []) == steps
