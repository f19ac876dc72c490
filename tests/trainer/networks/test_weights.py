from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput, NotFound, Unsupported
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.restructuring import restructure
from services.trainer.networks.weights import load_weights, save_weights
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options

LABELS = ("cat", "dog", "owl")


def options_of(network: str, network_options: dict[str, Any]) -> TrainingOptions:
    return make_options("quick", {"network": network, "network_options": network_options})


def a_classifier(options: TrainingOptions) -> Classifier:
    torch.manual_seed(0)
    network = build_network(options.network, len(LABELS), options.network_options)
    model = Classifier(network, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]), views=2)
    model(some_images())  # moves the statistics of norms
    model.temperature = 1.25
    return model.eval()


def some_images() -> Tensor:
    return torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def residual() -> TrainingOptions:
    return options_of("residual", {"widths": [8, 12, 16], "depths": [0, 1, 0]})


@pytest.mark.parametrize(
    ("network", "network_options"),
    [
        ("residual", {"widths": [8, 12, 16], "depths": [0, 1, 0]}),
        ("alexnet-small", {"head": [8], "norm": "lrn"}),
        ("torchvision:mobilenet_v3_small", {"input_side": 40}),
    ],
)
def test_a_loaded_classifier_answers_as_the_saved_one(
    network: str, network_options: dict[str, Any], tmp_path: Path
) -> None:
    options = options_of(network, network_options)
    model = a_classifier(options)

    save_weights(model, tmp_path / "weights.pt", options, LABELS)
    loaded, labels = load_weights(tmp_path / "weights.pt")

    assert labels == LABELS
    assert (loaded.temperature, loaded.views, loaded.training) == (1.25, 2, False)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]
    assert torch.equal(loaded(some_images()), model(some_images()))


def test_what_does_not_learn_does_not_learn_after_loading(residual: TrainingOptions, tmp_path: Path) -> None:
    model = a_classifier(residual)

    save_weights(model, tmp_path / "weights.pt", residual, LABELS)
    loaded, _ = load_weights(tmp_path / "weights.pt")

    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_loading_draws_no_random_number(residual: TrainingOptions, tmp_path: Path) -> None:
    save_weights(a_classifier(residual), tmp_path / "weights.pt", residual, LABELS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    load_weights(tmp_path / "weights.pt")

    assert torch.equal(torch.rand(3), expected)


def narrow(network: nn.Module, first: str, norm: str, second: str, kept: int) -> None:
    """Keep the first *kept* channels between two convolutions, as pruning does."""
    layer, following, after = (network.get_submodule(name) for name in (first, norm, second))
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(after, nn.Conv2d)
    layer.weight = nn.Parameter(layer.weight.data[:kept].clone())
    layer.out_channels = kept
    assert isinstance(following, nn.BatchNorm2d)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(following, name).data = getattr(following, name).data[:kept].clone()
    following.num_features = kept
    after.weight = nn.Parameter(after.weight.data[:, :kept].clone())
    after.in_channels = kept


def test_a_pruned_network_is_rebuilt_with_the_channels_that_are_left(residual: TrainingOptions, tmp_path: Path) -> None:
    model = a_classifier(residual)
    narrow(model.network, "stages.2.first.convolution", "stages.2.first.norm", "stages.2.second.convolution", kept=5)

    save_weights(model, tmp_path / "weights.pt", residual, LABELS)
    loaded, _ = load_weights(tmp_path / "weights.pt")

    layer = loaded.network.get_submodule("stages.2.first.convolution")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.in_channels, layer.out_channels) == (12, 5)
    assert torch.equal(loaded(some_images()), model(some_images()))
    loaded.network.fold()
    torch.testing.assert_close(loaded(some_images()), model(some_images()))


def test_a_depthwise_convolution_loses_groups_with_its_channels() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 2))
    thin = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(6, 2))

    restructure(wide, thin.state_dict())
    wide.load_state_dict(thin.state_dict())

    images = torch.randn(2, 3, 3, 3)
    assert torch.equal(wide(images), thin(images))


def test_weights_of_another_network_are_refused(residual: TrainingOptions) -> None:
    network = build_network("residual", 3, residual.network_options)
    other = build_network("residual", 3, {"widths": [8, 12, 16], "depths": [0, 0, 0]})

    with pytest.raises(
        InvalidInput, match=r"do not fit the network in \d+ places, first stages\.2\..* is saved, nothing is wanted"
    ):
        restructure(network, other.state_dict())


def test_a_missing_file_and_a_damaged_one_are_told_apart(residual: TrainingOptions, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.raises(NotFound, match=r"weights\.pt does not exist; train a model first"):
        load_weights(path)

    save_weights(a_classifier(residual), path, residual, LABELS)
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(InvalidInput, match=r"weights\.pt holds no weights that can be read: "):
        load_weights(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"network": print}, tmp_path / "weights.pt")

    with pytest.raises(InvalidInput, match="holds no weights that can be read"):
        load_weights(tmp_path / "weights.pt")


def test_weights_of_a_user_s_own_network_load_only_where_code_may_run(
    residual: TrainingOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    options = options_of("own:small", {"width": 4})
    network = build_network("own:small", 3, {"width": 4}, allow_code=True)
    model = Classifier(network, torch.zeros(3), torch.ones(3)).eval()
    save_weights(model, tmp_path / "weights.pt", options, LABELS)

    with pytest.raises(Unsupported, match="'own:small' is code"):
        load_weights(tmp_path / "weights.pt")
    loaded, _ = load_weights(tmp_path / "weights.pt", allow_code=True)

    assert torch.equal(loaded(some_images()), model(some_images()))
