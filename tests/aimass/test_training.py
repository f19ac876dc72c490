"""How `--set` becomes options."""

import pytest

from aimass.training import _overrides
from services.common.errors import InvalidInput


@pytest.mark.parametrize(
    ("assignments", "overrides"),
    [
        ([], {}),
        (["epochs=3"], {"epochs": 3}),
        (["learning_rate=0.5", "seed=7"], {"learning_rate": 0.5, "seed": 7}),
        (["network=alexnet"], {"network": "alexnet"}),
        (["augmentation.flip=false"], {"augmentation": {"flip": False}}),
        (["network_options.widths=[8, 16]"], {"network_options": {"widths": [8, 16]}}),
        (["augmentation.flip=true", "augmentation.cutout=4"], {"augmentation": {"flip": True, "cutout": 4}}),
        (["network=a=b"], {"network": "a=b"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_assignments_become_nested_options_with_json_values(assignments, overrides):
    assert _overrides(None, assignments) == overrides


def test_the_data_set_is_an_option_too():
    assert _overrides("cifar10", ["epochs=1"]) == {"dataset": "cifar10", "epochs": 1}


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(InvalidInput, match="is not name=value"):
        _overrides(None, ["epochs"])


def test_a_part_of_an_option_that_has_no_parts_is_refused():
    with pytest.raises(InvalidInput, match="dataset"):
        _overrides("cifar10", ["dataset.name=x"])
