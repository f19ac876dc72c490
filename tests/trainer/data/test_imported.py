from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.errors import InvalidInput, NotFound, Overloaded
from services.common.manifest import PreprocessSpec
from services.trainer.data.blobs import Blobs
from services.trainer.data.datasets import load_dataset
from services.trainer.data.imported import ImportCounts, NewSample, SampleImport, list_samples, newest_sample
from services.trainer.data.models import Model, count_samples, create_model
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded
from tests.trainer.data.test_metadata import PHOTO, exif, jpeg
from tests.trainer.data.test_pictures import ALL, KEPT, served

SPEC = PreprocessSpec(input="image", width=16, height=16)


@pytest.fixture
def model(database: Database) -> Model:
    return create_model(database, "pets", ["cat", "dog"], SPEC.canonical_json())


@pytest.fixture
def take(database: Database, sources: DataSources, model: Model) -> Callable[[list[NewSample]], ImportCounts]:
    """A function that imports samples and returns what became of them."""

    def run(samples: list[NewSample]) -> ImportCounts:
        with SampleImport(database, sources.blobs, "pets") as taking:
            taking.add(samples)
            return taking.counts

    return run


Take = Callable[[list[NewSample]], ImportCounts]


def noise(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [encoded(Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8))) for _ in range(count)]


def numbers(counts: ImportCounts) -> tuple[int, int, int]:
    return counts.accepted, counts.duplicates, counts.rejected


def test_samples_are_kept_and_listed_in_the_order_of_arrival(take: Take, database: Database, model: Model) -> None:
    images = noise(3)

    counts = take(
        [
            NewSample(image, label, f"id {label}", "test")
            for image, label in zip(images, ["cat", "dog", "cat"], strict=True)
        ]
    )

    samples, token = list_samples(database, "pets")
    assert numbers(counts) == (3, 0, 0)
    assert token == ""
    assert [each.label for each in samples] == ["cat", "dog", "cat"]
    assert [(each.width, each.height, each.format, each.orientation) for each in samples] == [(7, 9, "PNG", 1)] * 3
    assert (samples[1].client_id, samples[1].source) == ("id dog", "test")
    assert count_samples(database, model) == [2, 1]


def test_a_stored_file_has_its_pixels_and_no_metadata(take: Take, database: Database, sources: DataSources) -> None:
    take([NewSample(jpeg(), "cat")])

    sample = list_samples(database, "pets")[0][0]
    stored = Blobs(sources.blobs).path(sample.content_digest).read_bytes()
    assert b"Jane" not in stored
    assert (sample.format, sample.orientation, sample.width, sample.height) == ("JPEG", 6, 40, 30)
    with Image.open(BytesIO(stored)) as image, Image.open(BytesIO(jpeg())) as original:
        assert image.tobytes() == original.tobytes()


def test_imported_samples_become_the_pixels_that_serving_sends(
    take: Take, sources: DataSources, options: Callable[..., TrainingOptions]
) -> None:
    """Of every format and orientation, from the file as it was sent."""
    files = [ALL[name] for name in KEPT] + [
        encoded(PHOTO.rotate(90), name, exif=exif(turn)) for name in ("JPEG", "PNG", "WEBP") for turn in range(1, 9)
    ]
    counts = take([NewSample(data, ("cat", "dog")[row % 2]) for row, data in enumerate(files)])
    assert counts.accepted + counts.duplicates + counts.rejected == len(files)
    assert all(each.reason == "CONFLICTING_LABEL" for each in counts.rejections)

    dataset = load_dataset(options("model:pets", clean=True), sources)

    assert (dataset.name, dataset.labels, dataset.spec) == ("model:pets", ("cat", "dog"), SPEC)
    expected = {served(data, SPEC).tobytes() for data in files}
    images = [image for part in (dataset.train, dataset.validation, dataset.test) for image in part.images]
    assert len(images) > 20
    assert all(image.tobytes() in expected for image in images)


def test_the_same_pixels_are_taken_once_whatever_the_file(take: Take) -> None:
    first = take([NewSample(encoded(PHOTO), "cat"), NewSample(encoded(PHOTO, "BMP"), "cat")])
    again = take([NewSample(encoded(PHOTO, "WEBP", lossless=True), "cat")])

    assert numbers(first) == (1, 1, 0)
    assert numbers(again) == (0, 1, 0)


def test_the_same_pixels_under_another_label_are_refused(take: Take) -> None:
    take([NewSample(encoded(PHOTO), "cat")])

    counts = take([NewSample(encoded(PHOTO, "BMP"), "dog", "mine")])

    assert numbers(counts) == (0, 0, 1)
    assert (counts.rejections[0].client_id, counts.rejections[0].reason) == ("mine", "CONFLICTING_LABEL")
    assert "is labelled 'dog' and was imported as 'cat' before; leave out" in counts.rejections[0].message


def test_each_refused_sample_fails_alone(take: Take, database: Database) -> None:
    good = noise(2)
    counts = take(
        [
            NewSample(good[0], "cat"),
            NewSample(b"hello", "cat", "text"),
            NewSample(noise(1, 9)[0], "catt", "typo"),
            NewSample(noise(1, 8)[0], "cat", "x" * 201),
            NewSample(ALL["tiff-cmyk"], "cat", "cmyk"),
            NewSample(good[1], "dog"),
        ]
    )

    assert numbers(counts) == (2, 0, 4)
    assert [(each.index, each.client_id[:4], each.reason) for each in counts.rejections] == [
        (1, "text", "NOT_AN_IMAGE"),
        (2, "typo", "UNKNOWN_LABEL"),
        (3, "xxxx", "INVALID_INPUT"),
        (4, "cmyk", "UNSUPPORTED_IMAGE"),
    ]
    assert "did you mean 'cat'?" in counts.rejections[1].message
    assert len(list_samples(database, "pets")[0]) == 2


def test_only_the_first_refusals_are_told_and_all_are_counted(take: Take) -> None:
    counts = take([NewSample(b"hello", "cat")] * 150)

    assert counts.rejected == 150
    assert [each.index for each in counts.rejections] == list(range(100))


def test_indices_go_on_from_one_call_to_the_next(database: Database, sources: DataSources, model: Model) -> None:
    with SampleImport(database, sources.blobs, "pets") as taking:
        taking.add([NewSample(image, "cat") for image in noise(3)])
        taking.add([NewSample(b"hello", "cat")])

    assert [each.index for each in taking.counts.rejections] == [3]


def test_imports_at_the_same_time_take_each_picture_once(
    database: Database, sources: DataSources, model: Model
) -> None:
    images = noise(12)

    def run(seed: int) -> tuple[int, int]:
        order = np.random.default_rng(seed).permutation(12)
        with SampleImport(database, sources.blobs, "pets") as taking:
            for start in (0, 4, 8):
                taking.add([NewSample(images[row], "cat") for row in order[start : start + 4]])
            return taking.counts.accepted, taking.counts.duplicates

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(run, range(3)))

    assert sum(accepted for accepted, _ in results) == 12
    assert sum(duplicates for _, duplicates in results) == 24
    assert len(list_samples(database, "pets")[0]) == 12


def test_an_import_into_an_unknown_model_is_refused(database: Database, sources: DataSources) -> None:
    with pytest.raises(NotFound, match="model 'birds' is unknown"):
        SampleImport(database, sources.blobs, "birds")


def test_a_full_disk_ends_the_import_and_keeps_what_came_before(
    database: Database, sources: DataSources, model: Model, tmp_path: Path
) -> None:
    with SampleImport(database, sources.blobs, "pets") as taking:
        taking.add([NewSample(image, "cat") for image in noise(2)])
        for path in sorted(sources.blobs.glob("*")):
            path.rename(tmp_path / path.name)
        sources.blobs.rmdir()
        sources.blobs.write_bytes(b"no folder any more")
        with pytest.raises(Overloaded, match=r"cannot be stored in .*; make room there"):
            taking.add([NewSample(image, "cat") for image in noise(2, 5)])

    assert taking.counts.accepted == len(list_samples(database, "pets")[0]) == 2


def test_pages_hold_every_sample_once(take: Take, database: Database) -> None:
    take([NewSample(image, ("cat", "dog")[row % 2]) for row, image in enumerate(noise(7))])
    pages, token = [], ""
    while not pages or token:
        page, token = list_samples(database, "pets", page_size=3, page_token=token)
        pages.append([each.number for each in page])

    assert [len(page) for page in pages] == [3, 3, 1]
    numbers = [number for page in pages for number in page]
    assert numbers == sorted(set(numbers))


def test_a_source_and_a_digest_select_their_samples(take: Take, database: Database) -> None:
    take([NewSample(image, "cat", source=("here", "there")[row % 2]) for row, image in enumerate(noise(5))])
    third = list_samples(database, "pets")[0][2]

    from_there, _ = list_samples(database, "pets", source="there")
    alike, _ = list_samples(database, "pets", content_digest=f"sha256:{third.content_digest}")

    assert [each.source for each in from_there] == ["there", "there"]
    assert alike == [third]
    assert list_samples(database, "pets", source="there", content_digest=f"sha256:{third.content_digest}") == ([], "")
    for digest in ("x", third.content_digest, "sha256:" + "0" * 63):
        with pytest.raises(InvalidInput, match=r"content_digest .* is not valid; give sha256: and 64 hexadecimal"):
            list_samples(database, "pets", content_digest=digest)


def test_the_newest_sample_is_the_one_that_came_last(take: Take, database: Database) -> None:
    with pytest.raises(InvalidInput, match="model 'pets' has no samples; import some with ImportSamples first"):
        newest_sample(database, "pets")
    take([NewSample(image, "cat") for image in noise(3)])

    assert newest_sample(database, "pets") == list_samples(database, "pets")[0][-1].number
    with pytest.raises(NotFound, match="model 'pet' is unknown; did you mean 'pets'"):
        newest_sample(database, "pet")


def test_a_label_selects_its_samples(take: Take, database: Database) -> None:
    take([NewSample(image, ("cat", "dog")[row % 2]) for row, image in enumerate(noise(7))])

    assert [each.label for each in list_samples(database, "pets", label="dog")[0]] == ["dog"] * 3


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"label": "do"}, "did you mean 'dog'?"),
        ({"page_size": -1}, "page_size is -1; give 1 to 1000"),
        ({"page_token": "next"}, "page_token 'next' is not one; give next_page_token"),
    ],
    ids=["label", "size", "token"],
)
def test_a_page_that_cannot_be_is_refused(
    take: Take, database: Database, request_: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        list_samples(database, "pets", **request_)  # type: ignore[arg-type]
    assert words in caught.value.message


def test_a_model_without_samples_is_no_set(
    model: Model, sources: DataSources, options: Callable[..., TrainingOptions]
) -> None:
    with pytest.raises(InvalidInput, match="model 'pets' has no samples; import some with ImportSamples first"):
        load_dataset(options("model:pets"), sources)


def test_a_blob_that_is_gone_is_an_unreadable_sample(
    take: Take, sources: DataSources, database: Database, options: Callable[..., TrainingOptions]
) -> None:
    take([NewSample(image, ("cat", "dog")[row % 2], f"own {row}") for row, image in enumerate(noise(8))])
    sample = list_samples(database, "pets")[0][2]
    Blobs(sources.blobs).path(sample.content_digest).unlink()

    with pytest.raises(InvalidInput, match=rf"sample {sample.number} \(own 2\): the file cannot be read: No such file"):
        load_dataset(options("model:pets"), sources)
