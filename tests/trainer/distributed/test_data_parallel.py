import json
import os
import signal
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from services.common.errors import InvalidInput
from services.trainer.distributed.data_parallel import joined
from services.trainer.options import TrainingOptions
from services.trainer.training.batches import Batches
from services.trainer.training.results import EpochResult
from tests.trainer.distributed.data_parallel_process import launch
from tests.trainer.distributed.task import plain_dataset, read_until, started

pytestmark = pytest.mark.timeout(300)  # several processes at a time
STEPS = [f"step {step}" for step in range(1, 61)]


def curve(history: list[Any]) -> list[float]:
    figures = [EpochResult.model_validate(result) for result in history]
    return [value for result in figures for value in (result.train_loss, result.validation_loss)]


def test_two_workers_learn_as_one_does_also_when_one_is_killed(
    folder: Path, events: TextIO, history_alone: list[EpochResult]
) -> None:
    with started(launch, folder) as agent:
        seen = read_until("step 30", events)
        os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
        seen += read_until("ended with 0", events)

    assert agent.exitcode == 0
    assert seen[:21] == [*STEPS[:20], "epoch 1"]  # told by the first one only
    resumed = seen.index("epoch 1", 21)
    assert seen[resumed:] == ["epoch 1", *STEPS[20:40], "epoch 2", *STEPS[40:], "epoch 3", "ended with 0"]
    for rank in range(2):
        history = json.loads((folder / f"history-{rank}.json").read_text())
        assert curve(history) == pytest.approx(curve(history_alone), rel=1e-4)
    first, second = (torch.load(folder / f"model-{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_run_goes_on_at_the_same_step(folder: Path, events: TextIO, history_alone: list[EpochResult]) -> None:
    with started(launch, folder) as agent:
        read_until("step 30", events)
        agent.terminate()
        read_until("ended with 1", events)
    interrupted = [(folder / f"interrupted-{rank}").exists() for rank in range(2)]
    with started(launch, folder):
        seen = read_until("epoch 3", events)

    assert interrupted == [True, True]
    resumed = seen[seen.index("epoch 1") + 1]
    assert resumed in STEPS[30:40]
    history = json.loads((folder / "history-0.json").read_text())
    assert curve(history) == pytest.approx(curve(history_alone), rel=1e-4)


def test_a_process_that_torchrun_has_not_started_is_alone() -> None:
    with joined(torch.device("cpu")) as group:
        assert (group.rank, group.count) == (0, 1)


def test_a_batch_that_workers_cannot_share_evenly_is_refused(options: TrainingOptions) -> None:
    with pytest.raises(InvalidInput, match="a batch of 32 cannot be shared evenly by 3 workers; use a multiple of 3"):
        Batches(plain_dataset().train, 10, options, torch.device("cpu"), 0, 3)
