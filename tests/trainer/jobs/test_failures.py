"""What cannot work is said before an epoch is spent; what goes wrong later is said in one sentence."""

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import InvalidInput
from services.trainer.jobs.failures import known_reason, reason
from services.trainer.options import ConversionOptions, EvaluationOptions
from services.trainer.runs.record import RunState
from tests.trainer.jobs.conftest import DIVERGING, Make, Runs

MIB = 2**20


def empty_a_class(pictures: Path) -> None:
    shutil.rmtree(pictures / "train" / "bird")
    (pictures / "train" / "bird").mkdir()


def leave_one_class(pictures: Path) -> None:
    for part in ("train", "test"):
        for label in ("airplane", "bird"):
            shutil.rmtree(pictures / part / label)


def spoil_a_picture(pictures: Path) -> None:
    (pictures / "train" / "bird" / "003.png").write_text("no picture")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (empty_a_class, "class 'bird' is empty"),
        (leave_one_class, "has one class, 'automobile'; telling classes apart takes two"),
        (spoil_a_picture, "1 of the 180 samples of dataset"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_a_data_set_that_cannot_be_learnt_from_is_refused(
    runs: Runs, make: Make, copied: Path, spoil: Any, sentence: str
) -> None:
    spoil(copied)

    assert sentence in runs.refusal(copied.name, make(dataset=copied.name))


@pytest.mark.parametrize(
    ("run_id", "overrides", "sentence"),
    [
        ("gpu", {"device": "cuda"}, "device cuda is asked for, but torch finds no NVIDIA GPU here; use device"),
        ("half", {"precision": "float16", "device": "cpu"}, "precision float16 needs a GPU"),
        ("network", {"network": "residul"}, "network 'residul' is unknown; did you mean residual?"),
        ("widths", {"network_options": {"widths": [8]}}, "network 'residual' refuses"),
        ("code", {"network": "os:getcwd"}, "network 'os:getcwd' is code, which only the command line"),
        ("outside", {"dataset": "/usr/share"}, "dataset '/usr/share' is /usr/share, outside of the folders"),
        ("teacher", {"distillation": {"teacher": "nothing"}}, "'nothing' names no model"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_here_are_refused(
    runs: Runs, make: Make, run_id: str, overrides: dict[str, Any], sentence: str
) -> None:
    if run_id == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")

    assert runs.refusal(run_id, make(overrides)).startswith(sentence)


def test_a_disk_without_room_for_the_checkpoints_is_refused(runs: Runs, make: Make) -> None:
    reason = runs.refusal("disk", make(), free_disk=MIB // 8)

    assert re.fullmatch(
        r"the run needs up to 1 MiB for its checkpoints, .*/disk has 0 MiB free; delete old runs there, or choose a "
        "smaller network",
        reason,
    )


def test_a_rate_that_diverges_is_named(runs: Runs, make: Make) -> None:
    reason = runs.outcome(runs.create("diverging", make(DIVERGING | {"lr": 100}))).reason

    assert re.fullmatch(r"the loss is (nan|inf) in epoch \d; lower learning_rate 100.0 or set gradient_clip", reason)


def test_a_run_that_takes_more_memory_than_there_is_says_so(runs: Runs, make: Make) -> None:
    options = make({"network": "alexnet-small", "network_options": {"head": [4096, 16]}})  # 45 MiB of weights

    assert runs.refusal("memory", options, more_memory=100 * MIB).startswith("memory ran out (")


def test_a_run_that_failed_goes_on_once_the_cause_is_gone(runs: Runs, make: Make) -> None:
    options = make({"epochs": 1})
    runs.refusal("mended", options, free_disk=1)
    folder = runs.folder("mended")

    folder.forget_outcome()

    assert runs.outcome(folder).state is RunState.SUCCEEDED


@pytest.mark.parametrize("kind", [ConversionOptions, EvaluationOptions])
def test_a_source_without_a_model_is_refused(runs: Runs, make: Make, kind: Any) -> None:
    source = f"unfinished-{kind.__name__}"
    runs.create(source, make())

    assert runs.refusal(f"of-{source}", kind(source=f"run:{source}")).startswith(f"run:{source} has no model; ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(float)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40000 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_want_of_memory_has_one_sentence_whoever_tells_it(error: Exception, tmp_path: Path) -> None:
    assert reason(error, tmp_path).startswith("memory ran out (")
    assert reason(error, tmp_path).endswith("; lower batch_size or take a smaller network")


def test_torchs_own_want_of_memory_is_known(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)

    assert reason(caught.value, tmp_path).startswith("memory ran out (")


def test_a_full_disk_is_known_also_under_torch(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "wb") as file:
        torch.save({"weights": torch.zeros(10**5)}, file)

    assert reason(caught.value, tmp_path).startswith(f"the disk of {tmp_path} is full (")
    assert reason(RuntimeError("(sqlite3.OperationalError) database or disk is full"), tmp_path).startswith("the disk")


def test_our_own_errors_speak_for_themselves(tmp_path: Path) -> None:
    assert reason(InvalidInput("lower learning_rate"), tmp_path) == "lower learning_rate"


def test_what_nobody_expected_is_named_with_the_place_of_its_story(tmp_path: Path) -> None:
    error = KeyError("a\nb")

    assert reason(error, tmp_path) == "KeyError: 'a\\nb'; log.txt of the run has the whole story"
    assert known_reason(error, tmp_path) is None
    assert reason(ValueError(), tmp_path).startswith("ValueError: no message;")
