import json
from pathlib import Path

import pytest
from pydantic import ValidationError

import aimass
from services.common.manifest import Manifest
from services.trainer.evaluation.card import ModelCard, NetworkSize, changed_options, make_card
from services.trainer.evaluation.figures import Evaluation
from services.trainer.recipes import RECIPES, make_options


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of the model that comes with the suite."""
    path = Path(aimass.__file__).parent / "starter/cifar10/1/model.json"
    return Manifest.from_json(path.read_text(), path.name)


def test_card_needs_no_more_than_an_evaluation(evaluation: Evaluation) -> None:
    card = make_card(evaluation)

    assert card.labels == evaluation.labels
    assert (card.training, card.parent, card.latency, card.robustness, card.input) == (None,) * 5


def test_card_tells_what_the_manifest_knows(evaluation: Evaluation, manifest: Manifest) -> None:
    card = make_card(evaluation, manifest=manifest)

    assert manifest.graph is not None
    assert manifest.training is not None
    assert (card.size_bytes, card.graph_sha256) == (manifest.graph.size_bytes, manifest.graph.sha256)
    assert card.network == "residual"
    assert card.input is not None
    assert (card.input.name, card.input.shape, card.input.datatype) == ("image", (32, 32, 3), "UINT8")
    assert card.training is not None
    assert (card.training.recipe, card.training.dataset) == ("fast", manifest.training.dataset)
    assert card.training.changed_options["epochs"] == 48
    assert "recipe" not in card.training.changed_options


def test_card_survives_its_json(evaluation: Evaluation, manifest: Manifest) -> None:
    size = NetworkSize(parameters=5, multiply_adds=7)
    parent = make_card(evaluation, title="elder")
    card = make_card(
        evaluation, manifest=manifest, network_size=size, history={1: {"train_loss": 2.0}}, parent=parent, version=3
    )

    assert ModelCard.model_validate_json(card.to_json()) == card
    assert "null" not in card.to_json()


def test_card_keeps_of_its_parent_what_they_are_compared_by(evaluation: Evaluation, manifest: Manifest) -> None:
    grandparent = make_card(evaluation, title="first")
    parent = make_card(evaluation, title="second", version=2, manifest=manifest, parent=grandparent)

    card = make_card(evaluation, parent=parent)

    assert card.parent == parent.headline
    assert (card.parent.title, card.parent.version, card.parent.accuracy) == ("second", 2, evaluation.accuracy)
    assert "first" not in json.loads(card.to_json())["parent"].values()


def test_card_of_another_shape_is_refused(evaluation: Evaluation) -> None:
    fields = json.loads(make_card(evaluation).to_json())

    with pytest.raises(ValidationError):
        ModelCard.model_validate(fields | {"format": 2})


def test_changed_options_are_those_of_the_recipe_and_of_the_caller() -> None:
    options = make_options("fast", {"augmentation": {"cutout": 3}, "seed": 7})

    changed = changed_options(options.model_dump(mode="json"))

    assert (changed["augmentation.cutout"], changed["seed"], changed["epochs"]) == (3, 7, options.epochs)
    assert not {"momentum", "augmentation.flip", "freeze", "workers.count"} & set(changed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_changed_options_make_the_same_options_again(recipe: str) -> None:
    options = RECIPES[recipe]
    fields: dict[str, object] = {}
    for name, value in changed_options(options.model_dump(mode="json")).items():
        group, _, inner = name.rpartition(".")
        target = fields.setdefault(group, {}) if group else fields
        assert isinstance(target, dict)
        target[inner] = value

    assert type(options).model_validate(fields) == options


def test_options_of_another_time_count_as_changed() -> None:
    assert changed_options({"forgotten": 1, "momentum": 0.9, "freeze": []}) == {"forgotten": 1}
