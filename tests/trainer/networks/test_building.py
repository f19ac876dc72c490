import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from services.common.errors import InvalidInput, ServiceError, Unsupported
from services.trainer.networks.alexnet import SmallAlexNet
from services.trainer.networks.building import build_network
from services.trainer.networks.foreign import ForeignNetwork
from services.trainer.networks.residual import ResidualNetwork

IMAGES = (32, 32)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts this folder on the path, where `own.py` is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own", None)


def test_our_networks_are_built_by_name_and_options() -> None:
    network = build_network("alexnet-small", 7, {"head": [32], "norm": "batch"}, image_size=IMAGES)

    assert isinstance(network, SmallAlexNet)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("alexnett", {}, "network 'alexnett' is unknown; did you mean alexnet?"),
        ("resnet18", {}, "network 'resnet18' is unknown; did you mean torchvision:resnet18?"),
        ("xyzzy", {}, "network 'xyzzy' is unknown; use residual, alexnet, alexnet-small or torchvision:<model>"),
        ("torchvision:resnet81", {}, "torchvision has no classification model 'resnet81'; did you mean"),
        ("torchvision:raft_large", {}, "torchvision has no classification model 'raft_large'"),
        ("alexnet", {"drop": 0.1}, "network 'alexnet' has no option 'drop'; did you mean dropout?"),
        ("alexnet", {"xyzzy": 1}, "network 'alexnet' has no option 'xyzzy'; it takes input_side, dropout"),
        ("alexnet", {"classes": 3}, "network 'alexnet' has no option 'classes'; it takes input_side, dropout"),
        ("alexnet", {"input_side": 224}, "network 'alexnet' refuses {'input_side': 224}: input_side 224 leaves 5x5"),
        ("alexnet-small", {"norm": "x"}, "norm 'x' is unknown; use lrn, batch or none"),
        ("alexnet-small", {"input_side": 9}, "input_side 9 leaves nothing after three pools; use 15 or more"),
        ("residual", {"widths": "wide"}, "network 'residual' refuses {'widths': 'wide'}: "),
        ("torchvision:resnet18", {"x": 1}, "network 'torchvision:resnet18' refuses {'x': 1}: "),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "network_options.weights cannot be set: "),
        ("torchvision:resnet18", {"num_classes": 3}, "network_options.num_classes cannot be set: "),
        ("torchvision:squeezenet1_1", {"small_images": True}, "small_images changes the first layers of a ResNet and "),
    ],
)
def test_what_makes_no_network_is_answered_with_a_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        build_network(name, 10, options)

    assert sentence in error.value.message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:resnet18", {}),
        ("torchvision:resnet18", {"small_images": True}),
        ("torchvision:mobilenet_v3_small", {}),
        ("torchvision:squeezenet1_1", {}),
        ("torchvision:googlenet", {}),
        ("torchvision:densenet121", {"input_side": 40}),
    ],
)
def test_models_of_torchvision_have_an_output_for_each_class(name: str, options: dict[str, Any]) -> None:
    network = build_network(name, 7, options, image_size=IMAGES)

    assert isinstance(network, ForeignNetwork)
    with torch.no_grad():
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_resnet_for_small_images_keeps_its_resolution() -> None:
    network = build_network("torchvision:resnet18", 10, {"small_images": True})

    assert isinstance(network, ForeignNetwork)
    stem = network.module.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
    assert network.module.get_submodule("layer1")(torch.zeros(1, 64, 32, 32)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("name", ["torchvision:inception_v3", "torchvision:alexnet"])
def test_a_network_that_needs_larger_images_is_refused_until_it_up_samples(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"fails on images of 32x32 pixels: .*network_options\.input_side"):
        build_network(name, 10, {}, image_size=IMAGES)

    build_network(name, 10, {"input_side": 96}, image_size=IMAGES)


def test_images_larger_than_a_network_takes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="images of 48x40 pixels are larger than the network's 32x32"):
        build_network("alexnet-small", 10, {"head": []}, image_size=(40, 48))


def test_trying_a_network_leaves_it_as_it_was() -> None:
    torch.manual_seed(0)
    tried = build_network("residual", 10, {"widths": [8, 8, 8]}, image_size=IMAGES)
    torch.manual_seed(0)
    untried = build_network("residual", 10, {"widths": [8, 8, 8]})

    assert tried.training
    for one, other in zip(tried.state_dict().values(), untried.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"small_images": True}, {}])
def test_features_of_a_foreign_network_are_what_its_last_layer_sees(options: dict[str, Any]) -> None:
    network = build_network("torchvision:resnet18", 5, options)
    assert isinstance(network, ForeignNetwork)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = network.eval().embed(images)

        assert features.shape == (3, 512)
        assert torch.equal(network.last_layer(features), network(images))


def test_a_network_without_a_connected_last_layer_has_no_features() -> None:
    network = build_network("torchvision:squeezenet1_1", 5, {})

    with pytest.raises(Unsupported, match="SqueezeNet does not end in a fully connected layer"):
        network.embed(torch.zeros(1, 3, 32, 32))


@pytest.mark.usefixtures("own")
def test_a_user_s_own_factory_is_called_where_code_may_run() -> None:
    network = build_network("own:small", 4, {"width": 6}, image_size=IMAGES, allow_code=True)

    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert network.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 6)


@pytest.mark.usefixtures("own")
def test_a_factory_may_return_a_network_of_ours() -> None:
    assert isinstance(build_network("own:network", 4, {}, allow_code=True), ResidualNetwork)


@pytest.mark.usefixtures("own")
def test_code_is_never_imported_where_none_may_run() -> None:
    with pytest.raises(Unsupported, match="network 'own:small' is code, which only the command line of this machine"):
        build_network("own:small", 4, {})

    assert "own" not in sys.modules


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere:small", "module 'nowhere' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("own:smal", "module 'own' has no function 'smal'; did you mean small?"),
        ("own:number", "network 'own:number' returned int; its factory must return a torch.nn.Module"),
        ("own:raising", "network 'own:raising' refuses {}: KeyError: 'colour'"),
        ("own:one_logit_too_few", "answers two images with (2, 3); it must be logits of shape (2, 4)"),
        ("own:Pair", "answers two images with tuple; it must be logits of shape (2, 4)"),
    ],
)
def test_a_wrong_factory_is_answered_with_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ServiceError) as error:
        build_network(name, 4, {}, image_size=IMAGES, allow_code=True)

    assert sentence in error.value.message
