"""Pictures, folders of them, and a database."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.trainer.data.collection import OPEN, Collection
from services.trainer.data.datasets import PreprocessSpec
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.storage.database import Database


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    """Return *image* as a file."""
    file = BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def collection_of(samples: Samples, **changes: Any) -> Collection:
    """Return *samples* as if they had been found somewhere; their names are their positions."""
    count = len(samples)
    height, width = samples.images.shape[1:3]
    fields: dict[str, Any] = {
        "name": "found",
        "labels": tuple(f"class {number}" for number in range(int(samples.labels.max()) + 1)),
        "spec": PreprocessSpec(input="image", width=width, height=height),
        "images": samples.images,
        "classes": samples.labels,
        "parts": np.full(count, OPEN, np.int8),
        "names": [str(position) for position in range(count)],
        "sizes": np.full((count, 2), (width, height), np.int32),
        "formats": ["PNG"] * count,
    }
    return Collection(**(fields | changes))


def write_classes(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write so many small pictures, each another one, into a folder for each class."""
    generator = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that data may come from."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def sources(tmp_path: Path, root: Path, database: Database) -> DataSources:
    return DataSources(tmp_path / "data", (root,), database, tmp_path / "blobs")


@pytest.fixture
def options() -> Callable[..., TrainingOptions]:
    """A function that returns options for small sets: options(dataset, **others)."""

    def make(dataset: str, **others: Any) -> TrainingOptions:
        shares = {"validation_fraction": 0.25, "test_fraction": 0.25, "pixels": {"width": 8, "height": 8}}
        return make_options("quick", {"dataset": dataset, "threads": 1, **shares, **others})

    return make
