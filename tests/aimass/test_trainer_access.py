"""How `--set` becomes options."""

import pytest

from aimass.trainer_access import dataset_name, parse_assignments
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
    assert parse_assignments(assignments) == overrides


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(InvalidInput, match="is not name=value"):
        parse_assignments(["epochs"])


def test_a_part_of_an_option_that_has_no_parts_is_refused():
    with pytest.raises(InvalidInput, match="dataset"):
        parse_assignments(["dataset=cifar10", "dataset.name=x"])


def test_a_folder_that_is_here_is_named_by_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)

    assert dataset_name("pictures") == str(tmp_path / "pictures")
    assert dataset_name("cifar10") == "cifar10"
