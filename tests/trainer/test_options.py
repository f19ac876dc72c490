from typing import Any

import pytest

from services.common.errors import InvalidInput
from services.trainer.options import ConversionOptions, Range, TuningOptions, parse_options
from services.trainer.recipes import make_options


def search(space: dict[str, Any], **overrides: Any) -> TuningOptions:
    return parse_options(TuningOptions, {"training": make_options("quick", overrides), "space": space})


def test_a_trial_has_the_options_of_the_start_but_for_what_is_searched() -> None:
    options = search({"learning_rate": {"low": 0.1, "high": 1}, "augmentation.cutout": {"choices": [0, 8]}})

    trial = options.trial({"learning_rate": 0.5, "augmentation.cutout": 8})

    assert (trial.learning_rate, trial.augmentation.cutout) == (0.5, 8)
    assert trial.augmentation.translate == options.training.augmentation.translate


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"learning_rat": {"low": 1, "high": 2}}, "learning_rat is not an option; did you mean learning_rate?"),
        ({"momentum.x": {"low": 0.1, "high": 0.2}}, "momentum.x is not an option: momentum has no parts"),
        ({"momentum": {"low": 0.5, "high": 1}}, "momentum is 1.0: input should be less than 1"),
        ({"momentum": {"low": 0.5}}, "low 0.5 must be below high None"),
        ({"momentum": {"low": 0.5, "high": 0.1}}, "low 0.5 must be below high 0.1"),
        ({"momentum": {}}, "give low and high, or choices"),
        ({"momentum": {"low": 0.1, "high": 0.2, "choices": [0.1]}}, "give low and high, or choices"),
        ({"momentum": {"low": 0, "high": 0.5, "log": True}}, "log needs a low above 0, not 0.0"),
        ({"seed": {"choices": [1, 2]}}, "space has seed, which all trials share to be comparable; set it in"),
        ({"pixels.width": {"choices": [32, 64]}}, "space has pixels.width, which all trials share"),
        ({}, "space is {}: dictionary should have at least 1 item"),
    ],
)
def test_a_space_that_cannot_be_searched_is_answered_with_a_sentence(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        search(space)

    assert sentence in error.value.message


def test_trials_of_several_workers_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"workers\.count is 2, and trials are trained by one process each"):
        search({"learning_rate": {"low": 0.1, "high": 1}}, workers={"count": 2})


@pytest.mark.parametrize(
    ("values", "value", "admitted"),
    [
        (Range(low=0, high=1), 0.5, True),
        (Range(low=0, high=1), 2, False),
        (Range(low=0, high=1), "half", False),
        (Range(choices=(64, 128)), 128, True),
        (Range(choices=(64, 128)), 256, False),
    ],
)
def test_a_range_knows_what_it_admits(values: Range, value: object, admitted: bool) -> None:
    assert values.admits(value) is admitted


def test_a_missing_option_is_named() -> None:
    with pytest.raises(InvalidInput, match="source is missing; give it a value"):
        parse_options(ConversionOptions, {})
