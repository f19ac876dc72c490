"""The starter model's way into a repository."""

from aimass.starter import STARTER, install_starter
from services.common.manifest import Manifest


def test_a_new_repository_gets_the_starter_model(tmp_path):
    install_starter(tmp_path / "new" / "models")

    installed = tmp_path / "new" / "models" / "cifar10" / "1"
    for name in ("model.onnx", "model.json"):
        assert (installed / name).read_bytes() == (STARTER / "cifar10" / "1" / name).read_bytes()
    assert [path.name for path in (tmp_path / "new" / "models").iterdir()] == ["cifar10"]


def test_a_model_that_is_there_is_left_alone(tmp_path):
    mine = tmp_path / "cifar10" / "4"
    mine.mkdir(parents=True)

    install_starter(tmp_path)

    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["4"]


def test_the_starter_model_is_small_and_says_where_it_comes_from():
    folder = STARTER / "cifar10" / "1"
    manifest = Manifest.from_json((folder / "model.json").read_bytes(), "model.json")

    assert (folder / "model.onnx").stat().st_size <= 8 * 1024 * 1024
    assert manifest.preprocess.datatype == "UINT8"
    assert manifest.training.dataset.name == "cifar10"
    assert manifest.golden is not None
    assert len(manifest.labels) == 10
