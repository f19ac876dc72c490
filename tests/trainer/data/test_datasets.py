"""From the name of a set to its parts; and every set that cannot be learnt from is refused before any epoch."""

import dataclasses
import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.errors import InvalidInput, NotFound, NotReady, Overloaded, ServiceError
from services.trainer.data import collection
from services.trainer.data.datasets import Dataset, channel_statistics, load_dataset, make_dataset
from services.trainer.data.pictures import read_picture
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from tests.trainer.data.conftest import collection_of, write_classes
from tests.trainer.data.test_cifar_files import BINARY, write

Options = Callable[..., TrainingOptions]


def contents(samples: Samples) -> set[str]:
    return {hashlib.sha256(image.tobytes()).hexdigest() for image in samples.images}


def refusal(options: TrainingOptions, sources: DataSources) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        load_dataset(options, sources)
    return caught.value


def test_the_slice_comes_from_the_repository(options: Options, sources: DataSources) -> None:
    dataset = load_dataset(options("cifar10-slice", validation_fraction=0.1), sources)

    assert dataset.name == "cifar10-slice"
    assert dataset.counts == {"train": 4500, "validation": 500, "test": 1000}
    assert (dataset.spec.width, dataset.spec.height) == (32, 32)


def test_the_parts_of_the_slice_are_those_of_earlier_releases(options: Options, sources: DataSources) -> None:
    digest = load_dataset(options("cifar10-slice", validation_fraction=0.1, seed=0), sources).digest

    assert digest == "sha256:1b5230316cf1e7c4035baa7aa8adf4da8ec1ba3d757fb45aa2fc221d16f7bb0f"


def test_the_full_set_must_have_been_fetched(options: Options, sources: DataSources) -> None:
    error = refusal(options("cifar10"), sources)

    assert isinstance(error, NotFound)
    assert "data_batch_1.bin is missing; run `aimass data fetch cifar10` or use cifar10-slice" in error.message


def test_a_folder_of_pictures_becomes_three_parts(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 16, "dog": 24})

    dataset = load_dataset(options(str(root / "pets")), sources)

    assert dataset.labels == ("cat", "dog")
    assert dataset.counts == {"train": 23, "validation": 7, "test": 10}
    assert [np.bincount(part.labels).tolist() for part in (dataset.train, dataset.validation, dataset.test)] == [
        [9, 14],
        [3, 4],
        [4, 6],
    ]
    assert dataset.train.images.shape[1:] == (8, 8, 3)
    expected = read_picture((root / "pets" / "cat" / "0.png").read_bytes()).pixels(dataset.spec)
    everything = contents(dataset.train) | contents(dataset.validation) | contents(dataset.test)
    assert hashlib.sha256(expected.tobytes()).hexdigest() in everything
    assert len(everything) == 40


def test_the_same_options_and_files_give_the_same_digest(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 12, "dog": 12})
    made = options(str(root / "pets"))

    first, again = (load_dataset(made, sources) for _ in range(2))
    other = load_dataset(made.model_copy(update={"split_seed": 5}), sources)

    assert first.digest == again.digest
    assert other.digest != first.digest


def test_given_parts_stay_as_they_are(options: Options, sources: DataSources, root: Path) -> None:
    for seed, (part, count) in enumerate({"train": 8, "validation": 3, "test": 2}.items()):
        write_classes(root / "pets" / part, {"cat": count, "dog": count}, seed)

    dataset = load_dataset(options(str(root / "pets")), sources)

    assert dataset.counts == {"train": 16, "validation": 6, "test": 4}


def test_validation_is_drawn_where_only_a_test_part_is_given(
    options: Options, sources: DataSources, root: Path
) -> None:
    for seed, (part, count) in enumerate({"train": 8, "test": 2}.items()):
        write_classes(root / "pets" / part, {"cat": count, "dog": count}, seed)

    assert load_dataset(options(str(root / "pets")), sources).counts == {"train": 12, "validation": 4, "test": 4}


def test_batches_in_a_folder_are_read(options: Options, sources: DataSources, root: Path) -> None:
    write(root, BINARY)

    dataset = load_dataset(options(str(root), validation_fraction=0.5), sources)

    assert dataset.labels == ("cat", "dog")
    assert dataset.counts == {"train": 4, "validation": 4, "test": 4}


def test_copies_of_a_picture_are_never_in_two_parts(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 12, "dog": 12})
    for number in range(6):
        for copy in range(3):
            shutil.copy(root / "pets" / "cat" / f"{number}.png", root / "pets" / "cat" / f"{number}-{copy}.png")

    for seed in range(5):
        dataset = load_dataset(options(str(root / "pets"), split_seed=seed), sources)

        assert sum(dataset.counts.values()) == 42
        assert not contents(dataset.train) & contents(dataset.test)
        assert not contents(dataset.train) & contents(dataset.validation)
        assert not contents(dataset.validation) & contents(dataset.test)


def test_a_relative_path_counts_from_here_or_from_the_folder_of_data(
    options: Options, sources: DataSources, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = dataclasses.replace(sources, roots=(root, sources.data))
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    write_classes(sources.data / "birds", {"owl": 9, "tit": 9})
    monkeypatch.chdir(root)

    assert load_dataset(options("./pets"), sources).labels == ("cat", "dog")
    assert load_dataset(options("birds"), sources).labels == ("owl", "tit")


def test_a_tilde_is_the_home_folder(
    options: Options, sources: DataSources, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    monkeypatch.setenv("HOME", str(root))

    assert load_dataset(options("~/pets"), sources).labels == ("cat", "dog")


@pytest.mark.parametrize("way", ["plain", "dots", "link"])
def test_a_folder_outside_of_the_roots_is_refused(options: Options, sources: DataSources, root: Path, way: str) -> None:
    outside = write_classes(root.parent / "elsewhere", {"cat": 8, "dog": 8})
    (root / "link").symlink_to(outside)
    name = {"plain": str(outside), "dots": f"{root}/../elsewhere", "link": str(root / "link")}[way]

    error = refusal(options(name), sources)

    assert isinstance(error, InvalidInput)
    assert error.reason == "OUTSIDE_ROOTS"
    assert f"is {outside}, outside of the folders that data may come from: {root}; move it into one" in error.message


def test_a_picture_that_leads_outside_of_the_roots_is_not_opened(
    options: Options, sources: DataSources, root: Path
) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    outside = write_classes(root.parent / "elsewhere", {"cat": 1}) / "cat" / "0.png"
    (root / "pets" / "cat" / "link.png").symlink_to(outside)

    error = refusal(options(str(root / "pets")), sources)

    assert f"cat/link.png: it leads to {outside}, outside of the folders" in error.message


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mnist", InvalidInput, "dataset 'mnist' is unknown; use one of cifar10, cifar10-slice, model:<name>, snap"),
        ("{root}/nothing", NotFound, "nothing does not exist; create it, or name cifar10, cifar10-slice"),
        ("{root}", InvalidInput, "holds no data set: neither batches of CIFAR's layout"),
        ("~nobody-of-this-name/x", InvalidInput, "outside of the folders that data may come from"),
        ("model:pets", NotFound, "model 'pets' is unknown; create it with CreateModel first"),
    ],
    ids=["name", "missing", "empty", "user", "model"],
)
def test_a_set_that_is_not_there_is_refused(
    options: Options, sources: DataSources, root: Path, name: str, kind: type[ServiceError], words: str
) -> None:
    error = refusal(options(name.format(root=root)), sources)

    assert isinstance(error, kind)
    assert words in error.message


def test_a_models_set_needs_the_database(options: Options, sources: DataSources) -> None:
    error = refusal(options("model:pets"), dataclasses.replace(sources, database=None))

    assert isinstance(error, NotReady)
    assert "set TRAINER_DATABASE" in error.message


def test_an_empty_class_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 0})

    assert "class 'dog' is empty" in refusal(options(str(root / "pets")), sources).message


def test_one_class_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8})

    error = refusal(options(str(root / "pets")), sources)

    assert error.message.endswith("has one class, 'cat'; telling classes apart takes two: add another")


def test_a_class_too_small_for_the_parts_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 1})

    error = refusal(options(str(root / "pets")), sources)

    assert error.message.startswith("test_fraction 0.25 takes 0 of the 1 samples of class 'dog'")


def test_a_label_outside_the_range_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    write(root, BINARY, last=2)

    assert "gives row 3 the label 2" in refusal(options(str(root)), sources).message


def test_labels_outside_the_range_are_refused_wherever_they_come_from(
    options: Options, slice_samples: tuple[Samples, Samples]
) -> None:
    found = collection_of(slice_samples[0][:20], labels=("cat", "dog"))

    with pytest.raises(InvalidInput, match=r"has label \d; dataset 'found' has 2 classes, so labels go from 0 to 1"):
        make_dataset(found, options("found"))


def test_unreadable_files_are_named_the_first_ten(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    for number in range(12):
        (root / "pets" / "cat" / f"broken-{number:02}.jpg").write_bytes(b"hello")

    error = refusal(options(str(root / "pets")), sources)

    assert error.message.startswith("12 of the 28 samples of dataset ")
    assert "cannot be read; correct or remove them, or set clean to leave them out: cat/broken-00.jpg: the 5 bytes" in (
        error.message
    )
    assert "cat/broken-09.jpg" in error.message
    assert "cat/broken-10.jpg" not in error.message
    assert error.message.endswith("; and 2 more")


def test_clean_leaves_unreadable_files_out(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    (root / "pets" / "cat" / "broken.jpg").write_bytes(b"hello")

    assert sum(load_dataset(options(str(root / "pets"), clean=True), sources).counts.values()) == 16


def test_a_class_that_is_empty_after_cleaning_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 0})
    (root / "pets" / "dog" / "broken.jpg").write_bytes(b"hello")

    error = refusal(options(str(root / "pets"), clean=True), sources)

    assert "class 'dog' of dataset" in error.message
    assert "is empty; add samples or remove the class" in error.message


def test_duplicates_that_contradict_each_other_stop_a_run_or_are_all_left_out(
    options: Options, sources: DataSources, root: Path
) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    shutil.copy(root / "pets" / "cat" / "0.png", root / "pets" / "dog" / "copy.png")

    error = refusal(options(str(root / "pets")), sources)
    dataset = load_dataset(options(str(root / "pets"), clean=True), sources)

    assert "2 of the 17 samples" in error.message
    assert "dog/copy.png: has the pixels of cat/0.png, which is cat, not dog" in error.message
    assert sum(dataset.counts.values()) == 15


def test_a_test_picture_among_those_for_training_stops_a_run_or_stays_in_the_test_part(
    options: Options, sources: DataSources, root: Path
) -> None:
    for seed, (part, count) in enumerate({"train": 8, "test": 2}.items()):
        write_classes(root / "pets" / part, {"cat": count, "dog": count}, seed)
    shutil.copy(root / "pets" / "test" / "cat" / "0.png", root / "pets" / "train" / "cat" / "copy.png")

    error = refusal(options(str(root / "pets")), sources)
    dataset = load_dataset(options(str(root / "pets"), clean=True), sources)

    assert "train/cat/copy.png: is in train and has the pixels of test/cat/0.png in test" in error.message
    assert dataset.counts == {"train": 12, "validation": 4, "test": 4}


def test_too_little_disk_is_refused(
    options: Options, sources: DataSources, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(root / "pets", {"cat": 8, "dog": 8})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]

    error = refusal(options(str(root / "pets")), sources)

    assert isinstance(error, Overloaded)
    assert "has 10 left; make room there or lower pixels.width" in error.message


def test_what_has_no_room_in_memory_stays_on_the_disk_with_the_same_samples(
    options: Options, sources: DataSources, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(root / "pets", {"cat": 16, "dog": 16})
    in_memory = load_dataset(options(str(root / "pets")), sources)
    monkeypatch.setattr(collection, "IN_MEMORY_BYTES", 100)

    on_disk = load_dataset(options(str(root / "pets")), sources)

    assert not isinstance(in_memory.train.images, np.memmap)
    assert isinstance(on_disk.train.images, np.memmap)
    assert on_disk.digest == in_memory.digest


def test_a_pickle_that_would_run_something_is_refused(options: Options, sources: DataSources, root: Path) -> None:
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    (root / "test_batch").touch()
    (root / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + bytes(root / "attacked") + b"'\ntR.")

    assert "holds something else too (os.system)" in refusal(options(str(root)), sources).message
    assert not (root / "attacked").exists()


def test_digest_is_the_same_for_equal_samples(small_dataset: Dataset) -> None:
    copy = Samples(small_dataset.train.images.copy(), small_dataset.train.labels.copy())

    assert dataclasses.replace(small_dataset, train=copy).digest == small_dataset.digest


@pytest.mark.parametrize("field", ["images", "labels"])
def test_digest_changes_with_one_pixel_or_label(small_dataset: Dataset, field: str) -> None:
    parts = {"images": small_dataset.test.images.copy(), "labels": small_dataset.test.labels.copy()}
    parts[field].flat[0] ^= 1

    assert dataclasses.replace(small_dataset, test=Samples(**parts)).digest != small_dataset.digest


def test_digest_changes_when_a_sample_moves_to_another_split(small_dataset: Dataset) -> None:
    swapped = dataclasses.replace(small_dataset, validation=small_dataset.test, test=small_dataset.validation)

    assert swapped.digest != small_dataset.digest


def test_samples_refuse_unequal_lengths() -> None:
    with pytest.raises(InvalidInput, match="2 images came with 3 labels"):
        Samples(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(3, np.int64))


def test_channel_statistics_equal_numpy(small_dataset: Dataset) -> None:
    images = small_dataset.train.images

    mean, std = channel_statistics(images)

    assert np.allclose(mean, images.mean(axis=(0, 1, 2)), atol=1e-3)
    assert np.allclose(std, images.std(axis=(0, 1, 2)), atol=1e-3)


def test_pictures_of_any_size_and_format_become_the_same_number_of_pixels(
    options: Options, sources: DataSources, root: Path
) -> None:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir()
        for number, kind in enumerate(["png", "jpg", "webp", "gif", "bmp", "tiff", "avif", "png"]):
            pixels = generator.integers(0, 256, (10 + 9 * number, 30 - number, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.{kind}")

    dataset = load_dataset(options(str(root), pixels={"width": 16, "height": 12, "mode": "letterbox"}), sources)

    assert sum(dataset.counts.values()) == 16
    assert dataset.train.images.shape[1:] == (12, 16, 3)
