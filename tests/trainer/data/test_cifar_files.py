import pickle
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput, NotFound
from services.trainer.data.cifar_files import BINARY, LAYOUTS, PICKLED, Layout, find_layout, read_batches

FINE = LAYOUTS[3]


def planes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def write(folder: Path, layout: Layout, labels: tuple[str, ...] = ("cat", "dog"), last: int = 1) -> Path:
    """Write two training batches (or one, where the layout has no more) and a test batch of four rows each."""
    for seed, path in enumerate([*_train_files(folder, layout), folder / layout.test]):
        classes = [0, 1, 1, last]
        if layout.label_bytes:
            head = np.array([[9] * (layout.label_bytes - 1) + [label] for label in classes], np.uint8)
            path.write_bytes(np.hstack([head, planes(4, seed)]).tobytes())
        else:
            path.write_bytes(pickle.dumps({"data": planes(4, seed), layout.classes: classes}, 2))
    names = "\n".join(labels).encode() + b"\n\n" if layout.label_bytes else pickle.dumps({layout.names: list(labels)})
    (folder / layout.labels).write_bytes(names)
    return folder


def _train_files(folder: Path, layout: Layout) -> list[Path]:
    numbers = (1, 2) if "{}" in layout.train else (1,)
    return [folder / layout.train.format(number) for number in numbers]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.train)
def test_every_layout_is_found_and_read(layout: Layout, tmp_path: Path) -> None:
    write(tmp_path, layout)
    count = len(_train_files(tmp_path, layout))

    assert find_layout(tmp_path) == layout
    batches = read_batches(tmp_path, layout)

    expected = planes(4, 0).reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    assert batches.labels == ("cat", "dog")
    assert np.array_equal(batches.train.images[:4], expected)
    assert batches.train.labels.tolist() == [0, 1, 1, 1] * count
    assert len(batches.test) == 4
    assert batches.names[0] == f"{layout.train.format(1)}[0]"
    assert batches.names[-1] == f"{layout.test}[3]"


def test_a_folder_of_something_else_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"")

    assert find_layout(tmp_path) is None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.train)
def test_a_label_outside_the_range_is_named_with_its_row(layout: Layout, tmp_path: Path) -> None:
    write(tmp_path, layout, last=7)

    with pytest.raises(InvalidInput, match=r"gives row 3 the label 7; .* names 2 classes, so labels go from 0 to 1"):
        read_batches(tmp_path, layout)


def test_a_missing_test_batch_is_named(tmp_path: Path) -> None:
    (write(tmp_path, BINARY) / BINARY.test).unlink()

    with pytest.raises(NotFound, match=r"test_batch\.bin is missing beside the other batches; add it"):
        read_batches(tmp_path, BINARY)


def test_a_batch_that_ends_within_a_row_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, BINARY) / BINARY.test).write_bytes(bytes(3072))

    with pytest.raises(InvalidInput, match=r"test_batch\.bin holds 3072 bytes; it must be whole rows of 3073 bytes"):
        read_batches(tmp_path, BINARY)


@pytest.mark.parametrize(
    "content",
    [
        {"labels": [0]},
        {"data": planes(1, 0)},
        {"data": planes(2, 0), "labels": [0]},
        {"data": planes(1, 0)[:, :9], "labels": [0]},
        {"data": planes(1, 0), "labels": ["0"]},
        {"data": planes(0, 0), "labels": []},
    ],
    ids=["no-data", "no-labels", "unequal", "narrow", "texts", "nothing"],
)
def test_a_pickle_without_rows_and_labels_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    (write(tmp_path, PICKLED) / PICKLED.test).write_bytes(pickle.dumps(content))

    with pytest.raises(InvalidInput, match=r"test_batch must hold `data`, uint8 of shape \(n, 3072\), and `labels`"):
        read_batches(tmp_path, PICKLED)


@pytest.mark.parametrize("labels", [(), ("cat", "cat")], ids=["none", "twice"])
@pytest.mark.parametrize("layout", [BINARY, PICKLED, FINE], ids=lambda layout: layout.labels)
def test_names_of_classes_must_be_there_once(layout: Layout, labels: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, layout, labels)

    with pytest.raises(InvalidInput, match="must name each class once and names"):
        read_batches(tmp_path, layout)
