import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from services.trainer.evaluation.confusion import (
    Averages,
    class_results,
    confusion_matrix,
    export_confusion_csv,
    macro_averages,
    micro_averages,
    most_confused,
    weighted_averages,
    wilson_interval,
)

NAMES = ("cat", "dog", "owl", "bee", "elk")

few = settings(max_examples=40, deadline=None)  # the oracle takes milliseconds
pairs_of_labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.array(pairs).T
    return true, predicted


@few
@given(pairs_of_labels)
def test_counts_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = arrays(pairs)

    found = confusion_matrix(predicted, true, 5)

    assert (found == sklearn_confusion(true, predicted, labels=range(5))).all()


@few
@given(pairs_of_labels)
def test_figures_of_each_class_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = arrays(pairs)

    found = class_results(confusion_matrix(predicted, true, 5), NAMES)

    expected = precision_recall_fscore_support(true, predicted, labels=range(5), zero_division=0)
    assert [each.precision for each in found] == list(expected[0])
    assert [each.recall for each in found] == list(expected[1])
    assert [each.f1 for each in found] == list(expected[2])
    assert [each.samples for each in found] == list(expected[3])


@few
@given(pairs_of_labels, st.sampled_from(["macro", "weighted", "micro"]))
def test_averages_are_those_of_scikit_learn(pairs: list[tuple[int, int]], average: str) -> None:
    true, predicted = arrays(pairs)
    confusion = confusion_matrix(predicted, true, 5)
    classes = class_results(confusion, NAMES)

    found = {
        "macro": macro_averages(confusion, classes),
        "weighted": weighted_averages(classes),
        "micro": micro_averages(confusion),
    }[average]

    expected = precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
    assert (found.precision, found.recall, found.f1) == expected[:3]


def test_macro_average_leaves_out_what_neither_occurs_nor_was_called() -> None:
    confusion = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])

    found = macro_averages(confusion, class_results(confusion, NAMES[:3]))

    assert found == Averages(precision=(2 / 3 + 1) / 2, recall=0.75, f1=(0.8 + 2 / 3) / 2)


def test_recall_has_the_interval_of_its_class() -> None:
    confusion = np.array([[182, 81], [0, 0]])

    cat, dog = class_results(confusion, NAMES[:2])

    assert (cat.recall_low, cat.recall_high) == wilson_interval(182, 263)
    assert (dog.recall_low, dog.recall_high) == (0.0, 1.0)


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_interval_holds_the_share(successes: int, more: int) -> None:
    trials = successes + more

    low, high = wilson_interval(successes, trials)

    assert 0 <= low <= successes / trials <= high <= 1


def test_most_confused_begins_with_the_most_frequent_and_the_surest() -> None:
    probabilities = np.array(
        [
            [0.4, 0.6, 0.0],  # cat, called dog
            [0.1, 0.9, 0.0],  # cat, called dog, surer
            [0.9, 0.1, 0.0],  # cat
            [0.8, 0.1, 0.1],  # owl, called cat
        ]
    )

    first, second = most_confused(probabilities, np.array([0, 0, 0, 2]), NAMES[:3])

    assert (first.true, first.predicted, first.count, first.share) == ("cat", "dog", 2, 2 / 3)
    assert first.examples == (1, 0)
    assert (second.true, second.predicted, second.share, second.examples) == ("owl", "cat", 1.0, (3,))


def test_most_confused_stops_at_the_numbers_asked_for() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(5), 300)

    found = most_confused(probabilities, generator.integers(0, 5, 300), NAMES, pairs=3, examples=2)

    assert len(found) == 3
    assert [len(pair.examples) for pair in found] == [2, 2, 2]
    assert found[0].count >= found[1].count >= found[2].count


def test_most_confused_is_empty_where_all_is_right() -> None:
    assert most_confused(np.eye(3), np.arange(3), NAMES[:3]) == ()


@pytest.mark.parametrize("name", ["owl", 'a "quoted", name', "フクロウ", "two\nlines"])
def test_csv_has_the_truth_in_rows_and_gives_names_back(name: str, tmp_path: Path) -> None:
    export_confusion_csv(((3, 1), (0, 2)), ("cat", name), tmp_path / "confusion.csv")

    with (tmp_path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == ["cat", name]
    assert rows == [["cat", "3", "1"], [name, "0", "2"]]
