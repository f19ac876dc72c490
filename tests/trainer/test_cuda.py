"""What is different on an NVIDIA GPU; `make test` runs these where torch finds one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from services.common.errors import InvalidInput
from services.trainer.data.datasets import Dataset
from services.trainer.distributed.data_parallel import joined
from services.trainer.networks.normalization import LocalResponseNorm
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.launcher import RENDEZVOUS_FILE, torchrun
from services.trainer.training.batches import Batches
from services.trainer.training.distillation import distilled
from services.trainer.training.hardware import choose_precision, prepare
from services.trainer.training.loop import Loss, Watcher, train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import predict
from services.trainer.training.results import EpochResult, Interrupted
from tests.trainer.distributed import data_parallel_process, local_steps_process
from tests.trainer.distributed.task import plain_options, read_until, started

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU here"),
    pytest.mark.timeout(300),
]
GPU = torch.device("cuda")
CPU = torch.device("cpu")
ALL_CHANGES: dict[str, Any] = {"policy": "trivial", "mixup": 0.4, "cutmix": 1.0, "cutout": 4}


@pytest.fixture
def undetermined() -> Iterator[None]:
    """Take back what `deterministic` sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def changed(options: TrainingOptions, **fields: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(options.model_dump() | fields)


def curve(history: list[EpochResult]) -> list[float]:
    return [value for result in history for value in (result.train_loss, result.validation_loss)]


def test_a_gpu_is_taken_where_there_is_one(small_options: TrainingOptions) -> None:
    assert prepare(changed(small_options, device="auto")).type == "cuda"
    assert prepare(changed(small_options, device="cpu")).type == "cpu"
    assert choose_precision("auto", GPU) in (torch.bfloat16, torch.float16)


def test_samples_live_on_the_gpu_as_bytes_and_come_as_they_come_on_the_processor(
    small_dataset: Dataset, small_options: TrainingOptions
) -> None:
    options = changed(small_options, augmentation={"flip": True, "translate": 0, "cutout": 0})
    before = torch.cuda.memory_allocated()
    here, there = (Batches(small_dataset.train, 10, options, device, 0, 1) for device in (CPU, GPU))

    assert torch.cuda.memory_allocated() - before >= small_dataset.train.images.nbytes
    for (images, labels), (expected, of_them) in zip(there.epoch(1), here.epoch(1), strict=True):
        assert (images.device.type, images.dtype) == ("cuda", torch.uint8)
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), of_them)


def test_images_are_changed_on_the_gpu_from_a_seed(small_dataset: Dataset, small_options: TrainingOptions) -> None:
    batches = Batches(small_dataset.train, 10, changed(small_options, augmentation=ALL_CHANGES), GPU, 0, 1)

    first, second = next(batches.epoch(0)), next(batches.epoch(0))

    assert (first[0].device.type, first[0].dtype, first[1].shape) == ("cuda", torch.uint8, (64, 10))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], next(batches.epoch(1))[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_network_learns_on_the_gpu_and_comes_back(
    small_dataset: Dataset, small_options: TrainingOptions, precision: str
) -> None:
    options = changed(small_options, epochs=6, precision=precision)
    model = build_model(small_dataset, options)

    history = train(model, small_dataset, options, device=GPU)

    assert history[-1].train_loss < history[0].train_loss - 0.2
    assert history[-1].validation_accuracy > 0.3  # chance is 0.1
    on_processor = predict(model, small_dataset.test)  # the model has come back
    on_gpu = predict(model.to(GPU), small_dataset.test)
    assert np.abs(on_gpu - on_processor).max() < 0.01  # a GPU's float32 convolutions have 10 bits of mantissa


@pytest.mark.usefixtures("undetermined")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_that_was_stopped_equals_uninterrupted_training(
    tmp_path: Path, small_dataset: Dataset, small_options: TrainingOptions, precision: str
) -> None:
    options = changed(
        small_options, deterministic=True, precision=precision, augmentation=ALL_CHANGES, average_decay=0.9, epochs=2
    )
    prepare(options)
    expected = train(build_model(small_dataset, options), small_dataset, options, device=GPU)
    steps = iter(range(100))

    with pytest.raises(Interrupted):
        train(
            build_model(small_dataset, options),
            small_dataset,
            options,
            device=GPU,
            checkpoint=tmp_path / "c.pt",
            watcher=Watcher(should_stop=lambda: next(steps) == 20),
        )
    found = train(build_model(small_dataset, options), small_dataset, options, device=GPU, checkpoint=tmp_path / "c.pt")

    assert curve(found) == curve(expected)


def test_a_student_learns_from_a_teacher_on_the_gpu(small_dataset: Dataset, small_options: TrainingOptions) -> None:
    teacher = build_model(small_dataset, small_options)
    train(teacher, small_dataset, small_options, device=GPU)
    options = changed(small_options, distillation={"weight": 1.0, "temperature": 2.0}, seed=1, learning_rate=0.1)
    teacher.to(GPU)

    def teach(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return teacher(images).float()

    loss: Loss = distilled(teach, options)
    history = train(build_model(small_dataset, options), small_dataset, options, device=GPU, loss=loss)

    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("training", [True, False])
def test_local_response_norm_is_torch_s_there_too(training: bool) -> None:
    mine = (torch.randn(3, 20, 6, 6, generator=torch.Generator().manual_seed(0)) * 30).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    there = mine.to(GPU)

    found = LocalResponseNorm().to(GPU).train(training)(there)
    expected = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)(theirs)
    found.cpu().sum().backward()
    expected.sum().backward()

    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-2, atol=1e-3)


def test_alexnet_learns_in_bfloat16(small_dataset: Dataset) -> None:
    options = make_options("alexnet", {"epochs": 4, "batch_size": 50, "learning_rate": 0.01, "gradient_clip": 2.0})

    history = train(build_model(small_dataset, options), small_dataset, options, device=GPU)

    assert history[-1].train_loss < 2.25  # knowing nothing is ln 10, 2.30


def test_a_worker_that_torchrun_starts_learns_as_a_process_alone(tmp_path: Path) -> None:
    options = plain_options({"device": "cuda", "network_options": {"norm": True}})
    (tmp_path / "options.json").write_text(options.model_dump_json())
    script = data_parallel_process.__file__
    command = [sys.executable, *torchrun(tmp_path / RENDEZVOUS_FILE, 1), script, str(tmp_path)]

    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    history = [EpochResult.model_validate(result) for result in json.loads((tmp_path / "history-0.json").read_text())]
    assert len(history) == options.epochs
    assert history[-1].train_loss < history[0].train_loss


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.cuda.device_count()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(found + 1))
    monkeypatch.setenv("LOCAL_RANK", "0")

    with pytest.raises(InvalidInput, match=f"torch finds {found} NVIDIA GPUs"), joined(GPU):
        pass


def test_workers_with_local_steps_share_a_gpu(tmp_path: Path) -> None:
    workers = {"count": 2, "synchronisation": "local-steps", "local_steps": 6}
    options = plain_options({"device": "cuda", "network_options": {"norm": True}, "workers": workers})
    (tmp_path / "options.json").write_text(options.model_dump_json())
    os.mkfifo(tmp_path / "events")
    with open(os.open(tmp_path / "events", os.O_RDWR)) as events, started(local_steps_process.run, tmp_path) as process:
        read_until("ended with 0", events)

    assert process.exitcode == 0
    history = [EpochResult.model_validate(result) for result in json.loads((tmp_path / "history.json").read_text())]
    assert history[-1].train_loss < history[0].train_loss
