from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.evaluation.latency import Latency, measure_latency, processor_name, software_versions


class Recorder:
    """Keeps what it was run on."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __call__(self, batch: np.ndarray) -> None:
        self.batches.append(batch)


@pytest.fixture
def run() -> Recorder:
    return Recorder()


IMAGES = np.arange(5, dtype=np.uint8).repeat(12).reshape(5, 2, 2, 3)


def measured(run: Recorder, images: np.ndarray = IMAGES, **options: object) -> Latency:
    return measure_latency(run, images, **({"seconds": 0.0, "least_runs": 4, "warm_up": 2} | options))  # type: ignore[arg-type]


def test_every_batch_size_is_run_as_often_as_asked(run: Recorder) -> None:
    latency = measured(run, batch_sizes=(1, 32))

    assert [(each.batch_size, each.runs) for each in latency.batches] == [(1, 4), (32, 4)]
    assert [len(batch) for batch in run.batches] == [1] * 6 + [32] * 6


def test_runs_go_on_until_the_seconds_are_over(run: Recorder) -> None:
    (single,) = measured(run, batch_sizes=[1], seconds=0.05).batches

    assert single.runs > 4


def test_figures_belong_together(run: Recorder) -> None:
    latency = measured(run, batch_sizes=(1, 8), least_runs=50)

    for each in latency.batches:
        assert 0 < each.median_milliseconds <= each.p95_milliseconds
        assert each.images_per_second > 0
        assert each.cpu_seconds_per_image >= 0


def test_images_are_used_in_turn_and_again_where_they_run_out(run: Recorder) -> None:
    measured(run, batch_sizes=[2], warm_up=0, least_runs=3)
    measured(run, batch_sizes=[7], warm_up=0, least_runs=1)

    assert [batch[:, 0, 0, 0].tolist() for batch in run.batches] == [[0, 1], [2, 3], [0, 1], [0, 1, 2, 3, 4, 0, 1]]
    assert all(batch.flags.c_contiguous for batch in run.batches)


def test_latency_says_where_it_was_measured(run: Recorder) -> None:
    latency = measured(run, threads=3, packages=["numpy", "no-such-package"])

    assert (latency.threads, latency.warm_up) == (3, 2)
    assert latency.processor
    assert set(latency.software) == {"python", "numpy"}
    assert latency.software["numpy"] == np.__version__


def test_threads_are_the_cores_unless_told(run: Recorder) -> None:
    latency = measured(run)

    assert latency.threads == latency.cores >= 1


def test_processor_is_called_what_it_calls_itself(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmodel name\t: Some CPU @ 3 GHz\n"
    )

    assert processor_name(tmp_path / "cpuinfo") == "Some CPU @ 3 GHz"


def test_processor_without_a_name_is_called_by_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")

    assert processor_name(tmp_path / "cpuinfo") == processor_name(tmp_path / "missing") != ""


def test_versions_of_what_is_not_installed_are_left_out() -> None:
    assert "no-such-package" not in software_versions(["no-such-package"])


@pytest.mark.parametrize(("count", "options"), [(0, {}), (5, {"batch_sizes": (0,)}), (5, {"least_runs": 0})])
def test_what_cannot_be_measured_is_rejected(count: int, options: dict[str, object], run: Recorder) -> None:
    with pytest.raises(InvalidInput, match="cannot be measured"):
        measured(run, IMAGES[:count], **options)
