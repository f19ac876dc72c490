from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from services.common.errors import InvalidInput
from services.trainer.statistics.heads import PULLS, Head, choose_pull, fit_head, fit_temperature, head_probabilities

CLASSES, FEATURES = 4, 12


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Features that share a large part, as those after a rectifier do, and labels that follow them with noise."""
    random = np.random.default_rng(0)
    features = np.maximum(random.normal(2, 1, (800, FEATURES)), 0).astype(np.float32)
    scores = features @ random.normal(0, 1, (FEATURES, CLASSES)) + random.gumbel(size=(800, CLASSES))
    return features, (scores - scores.mean(axis=0)).argmax(axis=1)


def plain(*, bias: bool = True, temperature: float = 1.0) -> Head:
    return Head(np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32) if bias else None, temperature)


def loss(head: Head, features: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(head_probabilities(head, features)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("bias", [True, False])
def test_it_finds_what_another_solver_finds(samples: tuple[np.ndarray, np.ndarray], bias: bool) -> None:
    features, labels = samples
    other = LogisticRegression(C=np.inf, fit_intercept=bias, tol=1e-8, max_iter=2000).fit(features, labels)

    found = fit_head(features, labels, plain(bias=bias), pull=0, rounds=800)

    assert np.abs(head_probabilities(found, features) - other.predict_proba(features)).max() < 0.01
    assert (found.bias is not None) == bias


def test_more_rounds_do_not_lead_away(samples: tuple[np.ndarray, np.ndarray]) -> None:
    losses = [loss(fit_head(*samples, plain(), pull=0, rounds=rounds), *samples) for rounds in (5, 20, 80, 320)]

    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * loss(plain(), *samples)


def test_equal_arguments_give_equal_bits(samples: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = (fit_head(*samples, plain(), smoothing=0.1, rounds=50) for _ in range(2))

    assert first.weight.tobytes() == second.weight.tobytes()
    assert first.bias is not None
    assert second.bias is not None
    assert first.bias.tobytes() == second.bias.tobytes()


@pytest.mark.parametrize("bias", [True, False])
def test_a_strong_pull_keeps_the_head_where_it_starts_and_a_weak_one_lets_it_go(
    samples: tuple[np.ndarray, np.ndarray], bias: bool
) -> None:
    start = fit_head(*samples, plain(bias=bias, temperature=2.0))
    features, labels = samples[0], (samples[1] + 1) % CLASSES
    answers = head_probabilities(start, features)

    held, loose = (fit_head(features, labels, start, pull=pull) for pull in (1e4, 1e-4))

    assert np.abs(head_probabilities(held, features) - answers).max() < 0.01
    assert loss(loose, features, labels) < 0.6 * loss(start, features, labels)


def test_the_temperature_of_the_start_stays_and_changes_no_answer(samples: tuple[np.ndarray, np.ndarray]) -> None:
    cold, warm = (fit_head(*samples, plain(temperature=temperature)) for temperature in (1.0, 8.0))

    assert warm.temperature == 8
    assert np.allclose(head_probabilities(cold, samples[0]), head_probabilities(warm, samples[0]), atol=1e-5)


def test_smoothed_labels_make_a_less_sure_head(samples: tuple[np.ndarray, np.ndarray]) -> None:
    sharp, smooth = (
        head_probabilities(fit_head(*samples, plain(), smoothing=smoothing), samples[0]) for smoothing in (0.0, 0.2)
    )

    assert smooth.max(axis=1).mean() < sharp.max(axis=1).mean() - 0.03


def test_half_precision_features_give_nearly_the_same_head(samples: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = samples

    full, half = (fit_head(each, labels, plain()) for each in (features, features.astype(np.float16)))

    assert np.abs(head_probabilities(full, features) - head_probabilities(half, features)).max() < 0.01


def test_a_fitted_temperature_undoes_a_factor_of_the_layer(samples: tuple[np.ndarray, np.ndarray]) -> None:
    fitted = fit_head(*samples, plain(bias=False), pull=0, rounds=600)
    louder = replace(fitted, weight=5 * fitted.weight)

    found = fit_temperature(louder, *samples)

    assert found.temperature == pytest.approx(5, rel=0.05)
    assert found.weight is louder.weight


def test_a_temperature_stays_finite_where_all_answers_are_right() -> None:
    head = Head(np.eye(3, dtype=np.float32), None)

    assert fit_temperature(head, np.eye(3, dtype=np.float32), np.arange(3)).temperature == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(
    ("count", "width", "label"), [(0, FEATURES, 0), (3, FEATURES, CLASSES), (3, FEATURES, -1), (3, FEATURES + 1, 0)]
)
def test_what_does_not_fit_the_head_is_refused(count: int, width: int, label: int) -> None:
    with pytest.raises(InvalidInput, match="; give"):
        fit_head(np.ones((count, width), np.float32), np.full(count, label), plain())


def test_the_pull_is_strong_where_few_samples_say_little_and_weak_where_many_contradict_the_start() -> None:
    random = np.random.default_rng(0)
    truth = replace(plain(), weight=random.normal(0, 1, (CLASSES, FEATURES)).astype(np.float32))
    features = random.normal(0, 1, (4_000, FEATURES)).astype(np.float32)
    labels = (np.log(head_probabilities(truth, features)) + random.gumbel(size=(4_000, CLASSES))).argmax(axis=1)

    def chosen(start: Head, count: int) -> float:
        return choose_pull(features[:count], labels[:count], start, smoothing=0, rounds=100, seed=0)

    size = np.square(features).sum(axis=1).mean()
    assert chosen(truth, 60) == pytest.approx(max(PULLS) * size, rel=0.2)
    assert chosen(plain(), 4_000) < 0.1 * max(PULLS) * size
