"""Labels that are likely wrong and contributors who do harm, on features of the starter model."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aimass.starter import VERSION
from services.common.manifest import GRAPH_FILE
from services.trainer.analyst.suspicion import (
    FOLDS,
    Labelled,
    class_thresholds,
    fit,
    harm_level,
    likely_wrong,
    log_harm,
    out_of_fold,
)
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.statistics.heads import Head
from tests.trainer.analyst.conftest import CAT, DOG

COUNT = 400


@pytest.fixture(scope="module")
def samples(slice_samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Pictures that the starter model has not learnt."""
    path: Path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    cut_encoder(VERSION / GRAPH_FILE, path)
    chosen = slice_samples[1][:COUNT]
    return Labelled(Encoder(path, threads=1).embed(chosen.images), chosen.labels)


@pytest.fixture(scope="module")
def start() -> Head:
    return find_tail(VERSION / GRAPH_FILE).head


def doubted(start: Head, base: Labelled, users: Labelled) -> NDArray[np.bool_]:
    probabilities = out_of_fold(start, base, users, np.arange(len(users)) % FOLDS, lambda: None)
    return likely_wrong(users.labels, probabilities, class_thresholds(users.labels, probabilities))


def relabelled(samples: Labelled, members: NDArray[np.bool_], labels: NDArray[np.int64] | int) -> Labelled:
    changed = samples.labels.copy()
    changed[members] = labels
    return Labelled(samples.features, changed)


def test_flipped_labels_are_doubted_and_right_ones_are_not(start: Head, samples: Labelled) -> None:
    base, users = samples[np.arange(200)], samples[np.arange(200, COUNT)]
    random = np.random.default_rng(0)
    flipped = random.random(len(users)) < 0.1
    noisy = relabelled(users, flipped, (users.labels[flipped] + random.integers(1, 10, flipped.sum())) % 10)

    found = doubted(start, base, noisy)

    assert found[flipped].mean() > 0.7
    assert found[~flipped].mean() < 0.03


def test_pictures_that_are_hard_for_the_model_are_mostly_let_be(start: Head, samples: Labelled) -> None:
    base, users = samples[np.arange(200)], samples[np.arange(200, COUNT)]
    head = fit(start, base)
    wrong = (users.features @ head.weight.T).argmax(axis=1) != users.labels

    found = doubted(start, base, users)

    assert wrong.sum() >= 10
    assert found[wrong].mean() < 0.5


def test_a_block_of_lies_does_harm_and_an_honest_one_does_not(start: Head, samples: Labelled) -> None:
    base, users, judges = samples[np.arange(100)], samples[np.arange(100, 300)], samples[np.arange(300, COUNT)]
    cats = users.labels == CAT
    lies = Labelled(users.features[cats].repeat(3, axis=0), np.full(3 * cats.sum(), DOG))
    honest = users[~cats]

    without_lies, without_honest = fit(start, base.joined(honest)), fit(start, base.joined(lies))
    everything = fit(start, base.joined(honest).joined(lies))

    assert log_harm(without_lies, everything, judges) > harm_level(2)
    assert log_harm(without_honest, everything, judges) < harm_level(2)


def test_classes_with_few_samples_are_held_to_what_the_others_reach() -> None:
    labels = np.array([0] * 6 + [1])
    probabilities = np.array([[0.9, 0.1]] * 6 + [[0.8, 0.2]], np.float32)

    assert np.allclose(class_thresholds(labels, probabilities), [0.9, (6 * 0.9 + 0.2) / 7])


def test_without_samples_the_head_stays(start: Head, samples: Labelled) -> None:
    assert fit(start, samples[np.arange(0)]) is start
