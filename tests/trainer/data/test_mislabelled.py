import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from services.common.errors import InvalidInput, Unsupported
from services.trainer.data.mislabelled import find_mislabelled, out_of_fold_probabilities
from services.trainer.data.samples import Samples
from tests.trainer.data.conftest import collection_of


def blobs(count: int = 120, wrong: int = 6) -> tuple[Samples, np.ndarray]:
    """Dark, middling and bright images; the first few have another label than they should."""
    generator = np.random.default_rng(0)
    truth = np.arange(count) % 3
    images = np.clip(generator.normal(truth[:, None, None, None] * 80 + 40, 8, (count, 8, 8, 3)), 0, 255)
    labels = truth.copy()
    labels[:wrong] = (truth[:wrong] + 1) % 3
    return Samples(images.astype(np.uint8), labels), np.arange(wrong)


def fit_predict(train: Samples, held_out: Samples) -> np.ndarray:
    def flat(samples: Samples) -> np.ndarray:
        return samples.images.reshape(len(samples), -1) / 255

    return LogisticRegression().fit(flat(train), train.labels).predict_proba(flat(held_out))


def test_labels_that_are_wrong_are_found() -> None:
    samples, wrong = blobs()
    collection = collection_of(samples)

    probabilities = out_of_fold_probabilities(samples, fit_predict, class_count=3)
    problems = find_mislabelled(collection, np.arange(len(samples)), probabilities)

    assert sorted(each.position for each in problems) == wrong.tolist()
    assert problems[0].kind == "mislabelled"
    first = next(each for each in problems if each.position == 0)
    assert first.detail.startswith("is labelled class 1 (")
    assert "and looks like class 0 (" in first.detail


def test_every_sample_is_judged_by_a_model_that_has_not_seen_it() -> None:
    samples, _ = blobs()
    samples.images[:, 0, 0, 0] = np.arange(len(samples))
    judged: list[int] = []

    def check(train: Samples, held_out: Samples) -> np.ndarray:
        own, others = (part.images[:, 0, 0, 0].tolist() for part in (held_out, train))
        assert not set(own) & set(others)
        assert np.ptp(np.bincount(held_out.labels)) <= 1
        judged.extend(own)
        return np.tile([0.2, 0.3, 0.5], (len(held_out), 1))

    probabilities = out_of_fold_probabilities(samples, check, class_count=3, folds=4)

    assert sorted(judged) == list(range(len(samples)))
    assert np.allclose(probabilities, [0.2, 0.3, 0.5])


def test_folds_want_enough_samples_of_each_class() -> None:
    samples, _ = blobs(9, 0)

    with pytest.raises(InvalidInput, match=r"class 0 has 3 samples, and 5 folds want one each .*; add samples"):
        out_of_fold_probabilities(samples, fit_predict, class_count=3)


def test_probabilities_must_be_of_these_samples() -> None:
    samples, _ = blobs()

    with pytest.raises(InvalidInput, match=r"the probabilities have shape \(5, 3\); give \(120, 3\)"):
        find_mislabelled(collection_of(samples), np.arange(len(samples)), np.ones((5, 3)))


def test_a_missing_cleanlab_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    samples, _ = blobs()

    with pytest.raises(Unsupported, match=r"pip install 'aimass\[cleaning\]'"):
        find_mislabelled(collection_of(samples), np.arange(len(samples)), np.ones((120, 3)) / 3)
