"""How `--set` becomes options, and a command its own trainer."""

import stat
import tempfile

import pytest

from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer_access import dataset_name, parse_assignments, trainer_channel, training_stub
from services.common.errors import InvalidInput, SettingsError


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


async def test_a_command_s_own_trainer_is_reached_by_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMASS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async with trainer_channel("") as channel:
        (socket,) = tmp_path.glob("*/socket")
        assert socket.is_socket()
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert not (await training_stub(channel).ListRuns(pb.ListRunsRequest())).runs

    assert not socket.parent.exists()


async def test_a_socket_whose_path_is_too_long_is_told(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("AIMASS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    with pytest.raises(SettingsError, match="set TMPDIR to a shorter folder"):
        async with trainer_channel(""):
            pass
