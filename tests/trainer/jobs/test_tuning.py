"""Searches for better options, whole and interrupted."""

import signal
from typing import Any

import pytest

from services.trainer.evaluation.card import ModelCard
from services.trainer.options import Range, TuningOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import INTERRUPTED
from tests.trainer.jobs.conftest import DIVERGING, Make, Runs, at_epoch, at_step, entries_of, read_json, told_epochs

pytest.importorskip("optuna")

EPOCHS = 3


def search(make: Make, space: dict[str, Any], **fields: Any) -> TuningOptions:
    ranges = {name: Range.model_validate(values) for name, values in space.items()}
    return TuningOptions(training=make({"epochs": EPOCHS}), space=ranges, **fields)


def usual(make: Make) -> TuningOptions:
    """A search in which most trials are hopeless."""
    space = {
        "learning_rate": {"low": 1e-6, "high": 0.4, "log": True},
        "network_options.widths": {"choices": [[8, 8, 8], [16, 24, 32]]},
    }
    return search(make, space, trials=9, seed=1)


@pytest.fixture(scope="module")
def searched(runs: Runs, make: Make) -> RunFolder:
    return runs.finish("searched", usual(make))


@pytest.fixture(scope="module")
def interrupted(runs: Runs, make: Make) -> RunFolder:
    """The same search, killed twice and stopped once."""
    folder = runs.create("interrupted", usual(make))
    assert runs.signal(folder, signal.SIGKILL, at_epoch(2)) == -signal.SIGKILL
    assert runs.signal(folder, signal.SIGTERM, at_step(1)) == INTERRUPTED
    assert runs.signal(folder, signal.SIGKILL, at_epoch(EPOCHS + 2)) == -signal.SIGKILL
    return folder


def test_trials_are_written_down_the_best_first(searched: RunFolder) -> None:
    rows = read_json(searched / "trials.json")
    complete = [row["validation_accuracy"] for row in rows if row["state"] == "COMPLETE"]

    assert sorted(row["trial"] for row in rows) == list(range(9))
    assert complete == sorted(complete, reverse=True)
    assert [row["state"] for row in rows[: len(complete)]] == ["COMPLETE"] * len(complete)
    assert all(row["epochs"] == EPOCHS for row in rows if row["state"] == "COMPLETE")


def test_the_first_trial_is_what_the_search_starts_from(searched: RunFolder) -> None:
    first = next(row for row in read_json(searched / "trials.json") if row["trial"] == 0)

    assert first["values"] == {"learning_rate": 0.2, "network_options.widths": [16, 24, 32]}


def test_hopeless_trials_are_ended_early(searched: RunFolder) -> None:
    pruned = [row for row in read_json(searched / "trials.json") if row["state"] == "PRUNED"]

    assert pruned
    assert min(row["epochs"] for row in pruned) < EPOCHS


def test_the_best_trial_becomes_the_model(searched: RunFolder) -> None:
    best = read_json(searched / "trials.json")[0]
    outcome = searched.outcome()
    card = ModelCard.model_validate_json((searched / "card.json").read_bytes())

    assert outcome is not None
    assert outcome.metrics["validation_accuracy"] == best["validation_accuracy"]
    assert outcome.metrics["trials"] == 9
    assert card.training is not None
    assert card.training.changed_options["learning_rate"] == best["values"]["learning_rate"]
    assert not (searched / "trials").exists()


def test_progress_counts_the_epochs_of_all_trials(searched: RunFolder) -> None:
    rows = read_json(searched / "trials.json")

    assert list(told_epochs(searched)) == list(range(1, sum(row["epochs"] for row in rows) + 1))
    assert all(0 <= entry.fraction <= 1 for entry in entries_of(searched))


def test_an_interrupted_search_ends_as_if_nothing_had_happened(
    runs: Runs, interrupted: RunFolder, searched: RunFolder
) -> None:
    runs.outcome(interrupted)

    assert read_json(interrupted / "trials.json") == read_json(searched / "trials.json")
    assert told_epochs(interrupted) == told_epochs(searched)


def test_a_trial_that_diverges_does_not_end_the_search(runs: Runs, make: Make) -> None:
    training = make(DIVERGING)
    space = {"learning_rate": Range(choices=(100.0, 0.01))}
    folder = runs.create("diverging-trial", TuningOptions(training=training, space=space, trials=4, seed=1))

    reason = runs.outcome(folder).reason

    states = {row["values"]["learning_rate"]: row["state"] for row in read_json(folder / "trials.json")}
    assert (reason, states) == ("", {100.0: "FAIL", 0.01: "COMPLETE"})


def test_a_search_without_a_trial_that_ends_says_what_to_change(runs: Runs, make: Make) -> None:
    training = make(DIVERGING)
    space = {"learning_rate": Range(low=90.0, high=100.0)}

    reason = runs.refusal("hopeless", TuningOptions(training=training, space=space, trials=2))

    assert reason.startswith("no trial came to an end; correct the options or narrow the space: trial 0 failed: ")


def test_an_option_that_the_start_does_not_name_is_searched_too(runs: Runs, make: Make) -> None:
    training = make({"epochs": 1}).model_copy(update={"network_options": {"widths": [8, 8, 8]}})
    space = {"network_options.depths": Range(choices=([0, 0, 0], [0, 0, 1]))}
    folder = runs.begin("unnamed", TuningOptions(training=training, space=space, trials=1))

    assert list(told_epochs(folder)) == [1]
