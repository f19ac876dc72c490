"""The public set beside users' samples."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimass.starter import RUN_ID
from services.common.errors import Conflict
from services.common.pixels import transform
from services.trainer.analyst.basis import Basis, embed_basis, load_basis
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.stopping import Stopped
from services.trainer.data.models import Model, create_model
from services.trainer.data.prepared import KEPT
from services.trainer.data.sources import DataSources
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import PER_CLASS, SPEC


@pytest.fixture
def sources(settings: TrainerSettings, database: Database) -> DataSources:
    return DataSources(settings.data, tuple(map(Path, settings.data_roots)), database, settings.blobs)


@pytest.fixture
def basis(task: Model, sources: DataSources, base_folder: Path) -> Basis:
    return load_basis(str(base_folder), task, sources)


def test_the_features_of_all_parts_are_computed_once(
    basis: Basis, encoder: OpenedEncoder, sources: DataSources
) -> None:
    first = embed_basis(basis, encoder, sources.prepared, lambda: None)

    def stopped() -> None:
        raise Stopped

    second = embed_basis(basis, encoder, sources.prepared, stopped)  # finds nothing to do

    assert {part: len(getattr(first, part)) for part in PER_CLASS} == {
        part: 10 * count for part, count in PER_CLASS.items()
    }
    expected = encoder.embed(basis.validation.images)
    assert np.allclose(second.validation, expected, rtol=2e-3, atol=1e-3)
    assert np.array_equal(first.test, second.test)


def test_features_stay_where_sets_of_decoded_pictures_are_removed(
    basis: Basis, task: Model, encoder: OpenedEncoder, sources: DataSources, base_folder: Path, tmp_path: Path
) -> None:
    embed_basis(basis, encoder, sources.prepared, lambda: None)
    roots = DataSources(sources.data, (tmp_path,), None, sources.blobs)
    for number in range(KEPT + 1):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(base_folder, copy)
        load_basis(str(copy), task, roots)

    assert len([each for each in sources.prepared.iterdir() if each.is_dir()]) == KEPT
    assert len(list(sources.prepared.glob("features-*.npy"))) == 1


def test_an_encoder_is_given_the_pixels_that_it_takes(
    basis: Basis, encoder: OpenedEncoder, sources: DataSources, settings: TrainerSettings
) -> None:
    cropping = SPEC.model_copy(update={"mode": "crop", "shorter_side": 40})
    other = OpenedEncoder(settings.runs / RUN_ID, cropping, 10)

    features = embed_basis(basis, other, sources.prepared, lambda: None)

    expected = encoder.embed(np.stack([transform(Image.fromarray(each), cropping) for each in basis.test.images]))
    assert np.allclose(features.test, expected, rtol=2e-3, atol=1e-3)
    assert not np.allclose(features.test, encoder.embed(basis.test.images), rtol=2e-3, atol=1e-3)


def test_a_set_for_other_labels_is_not_compared_with(
    database: Database, sources: DataSources, base_folder: Path
) -> None:
    other = create_model(database, "other", ["cat", "dog"], SPEC.canonical_json())

    with pytest.raises(
        Conflict, match=r"tells airplane, .* apart and model 'other' cat, dog; name a set with the same"
    ):
        load_basis(str(base_folder), other, sources)


def test_a_set_of_another_size_is_not_compared_with(database: Database, task: Model, sources: DataSources) -> None:
    other = create_model(
        database, "other", list(task.labels), SPEC.model_copy(update={"width": 40, "height": 40}).canonical_json()
    )

    with pytest.raises(Conflict, match=r"images of shape \(32, 32, 3\) and model 'other' takes \(40, 40, 3\)"):
        load_basis("cifar10-slice", other, sources)
