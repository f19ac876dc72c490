import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import torch

from services.common.errors import Conflict, InvalidInput
from services.trainer.distributed.local_steps import train_with_local_steps
from services.trainer.distributed.task import Task
from services.trainer.options import TrainingOptions
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Watcher, train
from services.trainer.training.results import EpochResult, Interrupted, StepResult
from tests.trainer.distributed import local_steps_process
from tests.trainer.distributed.task import make_task, plain_options, read_until, started, task_of

pytestmark = pytest.mark.timeout(300)  # processes that import torch, several at a time
MAKER = f"{make_task.__module__}:{make_task.__name__}"
NORMS = {"norm": True}
LEASES = 7
"""Of an epoch: 40 steps of half a batch in sixes, and a rest."""
KILLED_EPOCHS = 8
"""Of a run that is killed after the first one: long enough that it is not over by then."""


def local_options(count: int, **overrides: object) -> TrainingOptions:
    workers = {"count": count, "synchronisation": "local-steps", "local_steps": 6}
    return plain_options({"network_options": NORMS, "workers": workers, **overrides})


def run(task: Task, folder: Path, watcher: Watcher = Watcher()) -> list[EpochResult]:  # noqa: B008 immutable
    """Train *task* with local steps in *folder*."""
    (folder / "options.json").write_text(task.options.model_dump_json())
    return train_with_local_steps(
        task.model,
        task.dataset,
        task.options,
        maker=MAKER,
        run_folder=folder,
        checkpoint=folder / "checkpoint.pt",
        watcher=watcher,
    )


@pytest.fixture
def go(folder: Path) -> Iterator[int]:
    """What workers wait for a byte of before they begin, so that none has done the work before another one is there."""
    os.mkfifo(folder / "go")
    descriptor = os.open(folder / "go", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_one_worker_that_is_followed_at_once_learns_as_plain_training_does(folder: Path) -> None:
    workers = {"outer_learning_rate": 1, "outer_momentum": 0, "synchronisation": "local-steps", "local_steps": 6}
    options = plain_options({"network_options": NORMS, "workers": workers, "label_smoothing": 0.1, "epochs": 2})
    alone, local = task_of(options), task_of(options)
    steps: list[StepResult] = []
    prepare(options)  # as many threads as the worker has

    expected = train(alone.model, alone.dataset, options)
    found = run(local, folder, Watcher(on_step=steps.append))

    figures = {"seconds", "images_per_second"}
    assert [r.model_dump(exclude=figures) for r in found] == [r.model_dump(exclude=figures) for r in expected]
    weights = local.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in alone.model.state_dict().items())
    assert [result.step for result in steps] == [6, 12, 18, 20, 26, 32, 38, 40]
    assert all(result.steps == 40 for result in steps)


def test_a_run_goes_on_when_one_of_two_workers_is_killed(folder: Path, events: TextIO, go: int) -> None:
    options = local_options(2, epochs=8)
    alone, local = task_of(options), task_of(options)
    ready: list[str] = []
    steps: list[StepResult] = []
    prepare(options)

    def release() -> bool:
        if not ready:
            ready.extend(events.readline().split()[1] for _ in range(2))
            os.write(go, b"go" * 5)
        return False

    def kill(result: StepResult) -> None:
        if result.step >= 100 and len(ready) == 2:
            os.kill(int(ready.pop()), signal.SIGKILL)
        steps.append(result)

    history = run(local, folder, Watcher(on_step=kill, should_stop=release))

    assert len(ready) == 1  # the other one was killed
    assert steps[-1].step == steps[-1].steps == 320  # of half a batch
    assert [result.epoch for result in history] == list(range(1, 9))
    expected = train(alone.model, alone.dataset, options)
    assert history[-1].validation_loss < expected[-1].validation_loss + 0.15


def test_a_stopped_run_goes_on_with_what_it_had_learnt(folder: Path) -> None:
    options = local_options(2, average_decay=0.9, keep="best")
    told: list[StepResult] = []
    epochs: list[int] = []

    with pytest.raises(Interrupted):
        run(
            task_of(options),
            folder,
            Watcher(on_step=told.append, should_stop=lambda: bool(told) and told[-1].step >= 46),
        )
    finished = torch.load(folder / "checkpoint.pt")["finished"]
    task = task_of(options)
    more: list[StepResult] = []
    history = run(task, folder, Watcher(on_step=more.append, on_epoch=lambda result: epochs.append(result.epoch)))

    assert len(finished) >= LEASES + 1
    assert more[-1].step == 120
    assert len(more) == 3 * LEASES - len(finished)
    assert epochs == [1, 2, 3]
    best = max(history, key=lambda result: result.validation_accuracy)
    kept = torch.load(folder / "best.pt")["model"]
    assert all(torch.equal(task.model.state_dict()[name], value) for name, value in kept.items())
    assert best.validation_accuracy >= history[-1].validation_accuracy
    with pytest.raises(Conflict, match="belongs to a run with other options"):
        run(task_of(local_options(2)), folder)


def test_a_killed_run_takes_its_workers_along_and_goes_on(folder: Path, events: TextIO, go: int) -> None:
    options = local_options(2, epochs=KILLED_EPOCHS)
    (folder / "options.json").write_text(options.model_dump_json())
    with started(local_steps_process.run, folder) as first:
        workers = [os.pidfd_open(int(events.readline().split()[1])) for _ in range(2)]
        os.write(go, b"go")
        seen = read_until("epoch 1", events)
        first.kill()
        seen += [event for event in read_until("ended with -9", events) if "ended" not in event]
    for worker in workers:
        readable, _, _ = select.select([worker], [], [], 20)
        assert readable, "a worker outlives its run"
        os.close(worker)

    os.write(go, b"go")
    with started(local_steps_process.run, folder):
        seen += read_until(f"epoch {KILLED_EPOCHS}", events)

    epochs = [event for event in seen if event.startswith("epoch")]
    assert sorted(set(epochs), key=epochs.index) == [f"epoch {epoch}" for epoch in range(1, KILLED_EPOCHS + 1)]
    assert len(json.loads((folder / "history.json").read_text())) == KILLED_EPOCHS
    assert len(torch.load(folder / "checkpoint.pt")["finished"]) == KILLED_EPOCHS * LEASES


def test_workers_share_each_batch_evenly(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a batch of 32 cannot be shared evenly by 3 workers; use a multiple of 3"):
        run(task_of(local_options(3)), folder)


def test_a_learning_rate_that_diverges_is_reported(folder: Path) -> None:
    # Weights grow 99 times at every step, until they are too large for a float.
    diverging = {"learning_rate": 100, "weight_decay": 1.0, "warm_up": 0.0, "schedule": "constant"}

    with pytest.raises(InvalidInput, match=r"the loss is \S+ in epoch 1; lower learning_rate 100"):
        run(task_of(local_options(1, **diverging)), folder)
