from typing import Any

import pytest

from services.common.errors import InvalidInput, NotFound
from services.trainer.recipes import RECIPES, TrainingOptions, make_options


@pytest.mark.parametrize("name", RECIPES)
def test_options_survive_json(name: str) -> None:
    options = make_options(name)

    assert TrainingOptions.model_validate_json(options.model_dump_json()) == options


def test_overrides_change_only_what_they_name() -> None:
    options = make_options("quick", {"epochs": 2, "augmentation": {"cutout": 0}})

    assert (options.epochs, options.augmentation.cutout) == (2, 0)
    assert options.augmentation.translate == RECIPES["quick"].augmentation.translate
    assert options.learning_rate == RECIPES["quick"].learning_rate


def test_an_unknown_recipe_is_answered_with_those_that_exist() -> None:
    with pytest.raises(NotFound, match="recipe 'slow' is unknown; use one of fast, quick"):
        make_options("slow")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0: input should be greater than or equal to 1"),
        ({"momentum": 1}, "momentum is 1: input should be less than 1"),
        ({"precision": "int4"}, "precision is 'int4': input should be 'auto', 'float32' or 'bfloat16'"),
        ({"augmentation": {"cutout": 99}}, "augmentation.cutout is 99: input should be less than or equal to 24"),
        ({"epoch": 3}, "epoch is not an option of training; the options are recipe, dataset"),
    ],
)
def test_a_wrong_override_is_answered_with_a_sentence(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make_options("quick", overrides)

    assert sentence in error.value.message


def test_every_wrong_override_is_named_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"epochs is 0.*; batch_size is 1"):
        make_options("quick", {"epochs": 0, "batch_size": 1})
