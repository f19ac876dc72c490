"""Tells what is in a data set and what is wrong with it: as JSON, and as one HTML page with pictures."""

import base64
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput
from services.trainer.clock import now
from services.trainer.data.cleaning import MAX_COMPARED, find_near_duplicates, find_problems
from services.trainer.data.collecting import collect
from services.trainer.data.collection import PARTS, Collection
from services.trainer.data.datasets import assign_parts, make_dataset
from services.trainer.data.problems import LEFT_OUT, Kind, Problem
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.pages import render_page

EXAMPLES = 10
"""Pictures of each class."""
EXAMPLE_CLASSES = 100
"""Classes that get pictures, the first ones."""
TOLD = 200
"""Problems of each kind that are listed; the others are counted."""
PICTURED = 24
"""Of these, problems that get pictures."""

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_BINS = 16
_THUMB = 96  # longest side of an embedded picture
_AT_ONCE = 1024


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ClassCount(_Part):
    """Samples of one class: all of them, and those in each part."""

    label: str
    total: int
    train: int = 0
    validation: int = 0
    test: int = 0


class Summary(_Part):
    """Spread of a number over all samples."""

    least: float
    median: float
    largest: float


class Histogram(_Part):
    """Samples by a number from 0 to `largest`, in bins of equal width."""

    largest: float
    counts: list[int]


class Example(_Part):
    """One sample with its picture, a data URI."""

    sample: str
    picture: str


class ClassExamples(_Part):
    """Pictures of one class."""

    label: str
    examples: list[Example]


class ToldProblem(_Part):
    """A problem, with pictures (data URIs) where there was room."""

    sample: str
    detail: str
    other: str = ""
    picture: str = ""
    other_picture: str = ""


class ProblemGroup(_Part):
    """Problems of one kind."""

    kind: Kind
    left_out: bool
    """Whether the option `clean` leaves such samples out, and without it they stop a run."""
    count: int
    problems: list[ToldProblem]
    """The first ones."""


class DataReport(_Part):
    """What is in a data set."""

    format: Literal[1] = 1
    dataset: str
    digest: str
    """Over the exact samples in their parts; empty where a run would be refused."""
    create_time: str
    spec: dict[str, Any]
    """The preprocess spec of the pixels."""
    refusal: str
    """Why a run with these options would be refused; empty where it would not."""
    sample_count: int
    part_counts: dict[str, int]
    """Samples in each part, after cleaning where the options ask for it; empty with a refusal."""
    class_counts: list[ClassCount]
    formats: dict[str, int]
    widths: Summary
    heights: Summary
    sizes: dict[str, int]
    """Samples by `<width>x<height>`, the most frequent ones."""
    brightness: Histogram
    """Mean of an image's channels, of 255."""
    contrast: Histogram
    """Standard deviation of an image's grey values, of 128."""
    problems: list[ProblemGroup]
    notes: list[str]
    """What was not looked at."""
    examples: list[ClassExamples]


def make_report(options: TrainingOptions, sources: DataSources) -> DataReport:
    """Look at the set that *options* name.

    Args:
        options: As a run would have them.
        sources: Where data lies.

    Raises:
        NotFound: There is no such set, or a file of it is missing.
        InvalidInput: The set is damaged, holds nothing, or lies outside of the roots.
        NotReady: The set is in the database, and there is none.
        Overloaded: The disk has no room for the decoded pictures.
    """
    return describe(collect(options, sources), options)


def describe(
    collection: Collection, options: TrainingOptions, mislabelled: Sequence[Problem] | None = None
) -> DataReport:
    """Look at *collection*; a set that no run would take is described all the same.

    Args:
        collection: All samples of the set.
        options: As a run would have them.
        mislabelled: What `find_mislabelled` gave for the same set; None where nobody has looked.
    """
    found = find_problems(collection)
    digest, refusal, members = "", "", dict[str, NDArray[np.int64]]()
    try:
        members = assign_parts(collection, options, found)
        digest = make_dataset(collection, options).digest
    except InvalidInput as error:
        refusal = error.message
    sizes = collection.sizes[collection.readable]
    brightness, contrast = _light(collection)
    notes = []
    if len(collection.readable) > MAX_COMPARED:
        notes.append(f"Near-duplicates were looked for among the first {MAX_COMPARED:,} samples.")
    if mislabelled is None:
        notes.append("Likely wrong labels were not looked for; that takes the answers of trained models.")
    return DataReport(
        dataset=collection.name,
        digest=digest,
        create_time=now(),
        spec=collection.spec.model_dump(mode="json", exclude_defaults=True),
        refusal=refusal,
        sample_count=len(collection),
        part_counts={part: len(positions) for part, positions in members.items()},
        class_counts=_class_counts(collection, members),
        formats=dict(Counter(name for name in collection.formats if name).most_common()),
        widths=_summary(sizes[:, 0]),
        heights=_summary(sizes[:, 1]),
        sizes=dict(Counter(f"{width}x{height}" for width, height in sizes.tolist()).most_common(12)),
        brightness=brightness,
        contrast=contrast,
        problems=_groups(collection, [*found, *find_near_duplicates(collection), *(mislabelled or ())]),
        notes=notes,
        examples=_examples(collection),
    )


def render_html(report: DataReport) -> str:
    """Return *report* as a page that needs no other file and runs no script; names in it are shown, never obeyed."""
    return render_page(_TEMPLATE, {"report": report, "parts": PARTS})


def _class_counts(collection: Collection, members: dict[str, NDArray[np.int64]]) -> list[ClassCount]:
    def count(positions: NDArray[np.int64]) -> list[int]:
        counted: list[int] = np.bincount(collection.classes[positions], minlength=len(collection.labels)).tolist()
        return counted

    totals = count(collection.readable)
    of_parts = {part: count(positions) for part, positions in members.items()}
    return [
        ClassCount(label=label, total=totals[number], **{part: counts[number] for part, counts in of_parts.items()})
        for number, label in enumerate(collection.labels)
    ]


def _summary(values: NDArray[np.int32]) -> Summary:
    if not values.size:
        return Summary(least=0, median=0, largest=0)
    return Summary(least=float(values.min()), median=float(np.median(values)), largest=float(values.max()))


def _light(collection: Collection) -> tuple[Histogram, Histogram]:
    means, deviations = [np.empty(0)], [np.empty(0)]
    for start in range(0, len(collection.readable), _AT_ONCE):
        grey = collection.images[collection.readable[start : start + _AT_ONCE]].mean(axis=3, dtype=np.float32)
        means.append(grey.mean(axis=(1, 2)))
        deviations.append(grey.std(axis=(1, 2)))
    return _histogram(np.concatenate(means), 255.0), _histogram(np.concatenate(deviations), 128.0)


def _histogram(values: NDArray[Any], largest: float) -> Histogram:
    return Histogram(largest=largest, counts=np.histogram(values, _BINS, (0.0, largest))[0].tolist())


def _groups(collection: Collection, problems: Sequence[Problem]) -> list[ProblemGroup]:
    groups = []
    for kind in get_args(Kind):
        members = [each for each in problems if each.kind == kind]
        if not members:
            continue
        told = [_told(collection, each, pictured=row < PICTURED) for row, each in enumerate(members[:TOLD])]
        groups.append(ProblemGroup(kind=kind, left_out=kind in LEFT_OUT, count=len(members), problems=told))
    return groups


def _told(collection: Collection, problem: Problem, *, pictured: bool) -> ToldProblem:
    picture = pictured and problem.position not in collection.unreadable
    return ToldProblem(
        sample=problem.sample,
        detail=problem.detail,
        other=problem.other,
        picture=_data_uri(collection.images[problem.position]) if picture else "",
        other_picture=_data_uri(collection.images[problem.other_position])
        if picture and problem.other_position is not None
        else "",
    )


def _examples(collection: Collection) -> list[ClassExamples]:
    examples = []
    classes = collection.classes[collection.readable]
    for number, label in enumerate(collection.labels[:EXAMPLE_CLASSES]):
        members = collection.readable[classes == number]
        # Spread over the whole class, since what came together often looks alike.
        chosen = members[np.unique(np.linspace(0, len(members) - 1, EXAMPLES).astype(int))] if members.size else members
        pictures = [
            Example(sample=collection.names[position], picture=_data_uri(collection.images[position]))
            for position in chosen
        ]
        examples.append(ClassExamples(label=label, examples=pictures))
    return examples


def _data_uri(image: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMB, _THUMB))
    file = BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
