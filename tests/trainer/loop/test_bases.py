"""The set that a model's samples are learnt beside, once it is here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.manifest import PreprocessSpec
from services.trainer.data.models import create_model
from services.trainer.data.sources import DataSources
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.bases import settle_base
from services.trainer.storage.database import Database

LABELS = ("blue", "green", "red")
MODEL = "colours"
SIDE = 8


@pytest.fixture
def sources(tmp_path: Path, database: Database) -> DataSources:
    return DataSources(tmp_path / "data", (tmp_path,), database, tmp_path / "blobs")


def base(database: Database) -> str:
    with database.read() as session:
        row = session.get(LoopModelRow, MODEL)
    return row.base if row is not None else ""


def write_set(folder: Path) -> None:
    """Write ten pictures of each label."""
    random = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def test_a_set_that_comes_onto_the_machine_later_becomes_the_base_for_ever(
    database: Database, sources: DataSources, tmp_path: Path
) -> None:
    spec = PreprocessSpec(input="image", width=SIDE, height=SIDE)
    create_model(database, MODEL, LABELS, spec.canonical_json())
    wanted = [str(tmp_path / "colours")]
    settle_base(database, sources, MODEL, wanted)
    assert base(database) == ""  # the one of the repository has other labels

    write_set(tmp_path / "colours")
    settle_base(database, sources, MODEL, wanted)
    assert base(database) == wanted[0]

    write_set(tmp_path / "others")
    settle_base(database, sources, MODEL, [str(tmp_path / "others")])
    assert base(database) == wanted[0]
