import base64
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.trainer.data.problems import Problem
from services.trainer.data.report import DataReport, describe, make_report, render_html
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from tests.trainer.data.conftest import collection_of, write_classes

Options = Callable[..., TrainingOptions]
HOSTILE = "<script>alert(1)<"


class Tags(HTMLParser):
    """Collects the names and attributes of all elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture
def pets(root: Path) -> Path:
    """A set with something wrong of every kind that pixels can show."""
    folder = write_classes(root / "pets", {"cat": 12, "dog": 14, HOSTILE: 12})
    cat, dog = folder / "cat", folder / "dog"
    shutil.copy(cat / "0.png", cat / "copy.png")
    shutil.copy(cat / "1.png", dog / "conflict.png")
    (dog / '"onerror="alert(1).png').write_bytes(b"hello")
    with Image.open(dog / "2.png") as image:
        Image.fromarray(np.asarray(image) ^ 1).save(dog / "near.png")
    return folder


@pytest.fixture
def report(options: Options, sources: DataSources, pets: Path) -> DataReport:
    return make_report(options(str(pets), clean=True), sources)


def test_counts_are_those_of_the_data_set(report: DataReport) -> None:
    assert report.sample_count == 42
    assert sum(report.part_counts.values()) == 39  # one unreadable, two that contradict each other
    assert [(each.label, each.total) for each in report.class_counts] == [(HOSTILE, 12), ("cat", 13), ("dog", 16)]
    assert sum(each.train + each.validation + each.test for each in report.class_counts) == 39
    assert report.digest.startswith("sha256:")
    assert report.refusal == ""


def test_every_problem_is_told_with_pictures_where_there_are_any(report: DataReport) -> None:
    told = {group.kind: (group.count, group.left_out) for group in report.problems}

    assert told == {
        "unreadable": (1, True),
        "conflict": (2, True),
        "duplicate": (1, False),
        "near-duplicate": (1, False),
    }
    unreadable, conflict = report.problems[0].problems[0], report.problems[1].problems[0]
    assert (unreadable.picture, unreadable.other_picture) == ("", "")
    assert conflict.picture == conflict.other_picture != ""


def test_sizes_formats_and_light_are_summed_up(report: DataReport) -> None:
    assert report.formats == {"PNG": 41}
    assert report.sizes == {"10x12": 41}
    assert (report.widths.least, report.widths.median, report.widths.largest) == (10, 10, 10)
    assert (report.heights.least, report.heights.largest) == (12, 12)
    assert sum(report.brightness.counts) == sum(report.contrast.counts) == 41
    assert report.brightness.counts[7] + report.brightness.counts[8] > 30  # noise is grey


def test_pictures_are_the_pixels_that_are_learnt_from(report: DataReport) -> None:
    data = report.examples[1].examples[0].picture.removeprefix("data:image/png;base64,")

    with Image.open(BytesIO(base64.b64decode(data))) as image:
        assert image.size == (8, 8)
    assert [each.label for each in report.examples] == [HOSTILE, "cat", "dog"]
    assert [len(each.examples) for each in report.examples] == [10, 10, 10]


def test_a_set_that_a_run_would_refuse_is_described_all_the_same(
    options: Options, sources: DataSources, pets: Path
) -> None:
    report = make_report(options(str(pets)), sources)

    assert report.refusal.startswith("1 of the 42 samples of dataset")
    assert report.part_counts == {}
    assert report.digest == ""
    assert "A run would be refused:" in render_html(report)


def test_the_json_is_read_back_as_the_same_report(report: DataReport) -> None:
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_the_page_needs_nothing_else_and_obeys_no_name(report: DataReport) -> None:
    page = render_html(report)
    tags = Tags(page)

    assert "script" not in tags.names
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for name, value in tags.attributes if name == "src")
    assert not re.search(r"https?://|url\(|@import", page)
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "&#34;onerror=&#34;alert(1).png" in page


def test_a_page_tells_likely_wrong_labels_that_a_caller_has_found(
    options: Options, slice_samples: tuple[Samples, Samples]
) -> None:
    collection = collection_of(slice_samples[0].first_per_class(20))
    found = [Problem(kind="mislabelled", position=3, sample="3", detail="is labelled class 0 and looks like class 2")]

    report = describe(collection, options("found"), found)

    assert [(group.kind, group.count) for group in report.problems] == [("mislabelled", 1)]
    assert report.notes == []
    assert "is labelled class 0 and looks like class 2" in render_html(report)


def test_a_set_without_problems_says_so(options: Options, slice_samples: tuple[Samples, Samples]) -> None:
    report = describe(collection_of(slice_samples[0].first_per_class(20)), options("found"))

    assert report.problems == []
    assert report.notes == ["Likely wrong labels were not looked for; that takes the answers of trained models."]
    assert describe(collection_of(slice_samples[0].first_per_class(20)), options("found"), []).notes == []
    assert "Nothing was found that is wrong with these samples." in render_html(report)


def test_many_problems_are_counted_and_the_first_are_told(options: Options) -> None:
    images = np.zeros((600, 8, 8, 3), np.uint8)

    report = describe(collection_of(Samples(images, np.arange(600) % 2)), options("found"))

    assert [(group.count, len(group.problems)) for group in report.problems] == [(600, 200)]
    assert sum(bool(each.picture) for each in report.problems[0].problems) == 24
    assert "and 400 more" in render_html(report)
