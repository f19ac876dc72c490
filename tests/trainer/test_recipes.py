from typing import Any

import pytest

from services.common.errors import InvalidInput, NotFound
from services.trainer.options import Augmentation, TrainingOptions
from services.trainer.recipes import RECIPES, make_options


@pytest.mark.parametrize("name", RECIPES)
def test_options_survive_json(name: str) -> None:
    options = make_options(name)

    assert TrainingOptions.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_filed_under_its_own_name_and_survives_being_made(name: str) -> None:
    assert make_options(name) == RECIPES[name]
    assert RECIPES[name].recipe == name


def test_recipe_alexnet_has_the_mission_s_values() -> None:
    options = make_options("alexnet")

    assert (options.network, options.network_options, options.dataset) == ("alexnet", {}, "cifar10")
    assert (options.epochs, options.batch_size, options.log_every) == (20, 128, 10)
    assert (options.optimizer, options.momentum, options.nesterov) == ("sgd", 0.9, False)
    assert (options.learning_rate, options.weight_decay, options.warm_up) == (1e-3, 5e-4, 0.0)
    assert (options.schedule, options.step_epochs, options.step_factor) == ("step", 30, 0.1)
    assert options.augmentation == Augmentation(flip=False, translate=0)


def test_overrides_change_only_what_they_name() -> None:
    options = make_options("quick", {"epochs": 2, "augmentation": {"cutout": 0}})

    assert (options.epochs, options.augmentation.cutout) == (2, 0)
    assert options.augmentation.translate == RECIPES["quick"].augmentation.translate
    assert options.learning_rate == RECIPES["quick"].learning_rate


def test_an_unknown_recipe_is_answered_with_those_that_exist() -> None:
    with pytest.raises(NotFound, match="recipe 'slow' is unknown; use one of fast, quick, alexnet, "):
        make_options("slow")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0: input should be greater than or equal to 1"),
        ({"momentum": 1}, "momentum is 1: input should be less than 1"),
        ({"precision": "int4"}, "precision is 'int4': input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"augmentation": {"cutout": 999}}, "augmentation.cutout is 999: input should be less than or equal to 256"),
        ({"epoch": 3}, "epoch is not an option; did you mean epochs?"),
        ({"augmentation": {"mixap": 1}}, "augmentation.mixap is not an option; did you mean augmentation.mixup?"),
        ({"xyzzy": 1}, "xyzzy is not an option; the options are recipe, dataset, pixels.width"),
        ({"replay": 3}, "replay needs start_from, whose set is replayed"),
    ],
)
def test_a_wrong_override_is_answered_with_a_sentence(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make_options("quick", overrides)

    assert sentence in error.value.message


def test_every_wrong_override_is_named_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"epochs is 0.*; batch_size is 0"):
        make_options("quick", {"epochs": 0, "batch_size": 0})


def test_lr_is_a_short_name_of_the_learning_rate() -> None:
    assert make_options("quick", {"lr": 0.01}).learning_rate == 0.01


def test_another_network_takes_none_of_the_options_of_the_recipe_s_network() -> None:
    assert make_options("quick", {"network": "alexnet"}).network_options == {}
    assert make_options("quick", {"network_options": {"depths": [0, 0, 0]}}).network_options == {
        "widths": [32, 64, 128],
        "depths": [0, 0, 0],
    }
