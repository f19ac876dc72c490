import pytest
import torch
from torch import Tensor, nn

from services.trainer.networks.alexnet import AlexNet, SmallAlexNet
from services.trainer.networks.classifier import Network
from services.trainer.networks.normalization import LocalResponseNorm


def shapes(network: Network, side: int) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and output shape, without the batch, of every layer of *network* in the order they run."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((type(module).__name__, tuple(output.shape[1:])))

    hooks = [module.register_forward_hook(note) for module in network.modules() if not list(module.children())]
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return found


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("side", [32, 227])
def test_every_layer_of_alexnet_has_the_mission_s_shape(side: int) -> None:
    assert shapes(AlexNet(10), side) == [
        ("UpSampling", (3, 227, 227)),
        ("Conv2d", (96, 55, 55)),
        ("ReLU", (96, 55, 55)),
        ("LocalResponseNorm", (96, 55, 55)),
        ("MaxPool2d", (96, 27, 27)),
        ("Conv2d", (256, 27, 27)),
        ("ReLU", (256, 27, 27)),
        ("LocalResponseNorm", (256, 27, 27)),
        ("MaxPool2d", (256, 13, 13)),
        ("Conv2d", (384, 13, 13)),
        ("ReLU", (384, 13, 13)),
        ("Conv2d", (384, 13, 13)),
        ("ReLU", (384, 13, 13)),
        ("Conv2d", (256, 13, 13)),
        ("ReLU", (256, 13, 13)),
        ("MaxPool2d", (256, 6, 6)),
        ("Flatten", (9216,)),
        ("Dropout", (9216,)),
        ("Linear", (4096,)),
        ("ReLU", (4096,)),
        ("Dropout", (4096,)),
        ("Linear", (4096,)),
        ("ReLU", (4096,)),
        ("Linear", (10,)),
    ]


@pytest.mark.parametrize(("classes", "count"), [(10, 58_322_314), (1000, 62_378_344)])
def test_alexnet_has_as_many_weights_as_the_mission_s(classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(AlexNet(classes)) == count


def test_convolutions_and_norms_of_alexnet_are_the_mission_s() -> None:
    with torch.device("meta"):
        modules = list(AlexNet(10).modules())

    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert [(c.kernel_size[0], c.stride[0], c.padding[0], c.groups) for c in convolutions] == [
        (11, 4, 0, 1),
        (5, 1, 2, 1),
        (3, 1, 1, 1),
        (3, 1, 1, 1),
        (3, 1, 1, 1),
    ]
    norms = [(m.size, m.alpha, m.beta, m.k) for m in modules if isinstance(m, LocalResponseNorm)]
    assert norms == [(5, 1e-4, 0.75, 2.0)] * 2
    assert [m.p for m in modules if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_alexnet_refuses_224_pixels_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="input_side 224 leaves 5x5 features and the classifier needs 6x6; use 227"):
        AlexNet(10, input_side=224)


def test_every_layer_of_the_small_alexnet_has_its_shape() -> None:
    assert [shape for kind, shape in shapes(SmallAlexNet(10), 32) if kind in ("Conv2d", "MaxPool2d", "Linear")] == [
        (96, 32, 32),
        (96, 15, 15),
        (256, 15, 15),
        (256, 7, 7),
        (384, 7, 7),
        (384, 7, 7),
        (256, 7, 7),
        (256, 3, 3),
        (4096,),
        (4096,),
        (10,),
    ]


@pytest.mark.parametrize(("classes", "count"), [(10, 29_983_114), (1000, 34_039_144)])
def test_the_small_alexnet_has_thirty_million_weights(classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(SmallAlexNet(classes)) == count


@pytest.mark.parametrize(
    ("norm", "kinds"), [("lrn", ["LocalResponseNorm"] * 2), ("batch", ["BatchNorm2d"] * 5), ("none", [])]
)
def test_the_small_alexnet_has_the_norm_that_is_asked_for(norm: str, kinds: list[str]) -> None:
    network = SmallAlexNet(10, norm=norm, head=[16])

    assert [type(m).__name__ for m in network.modules() if "Norm" in type(m).__name__] == kinds


def test_the_head_of_the_small_alexnet_can_be_made_small() -> None:
    images = torch.zeros(2, 3, 32, 32)

    assert SmallAlexNet(10, head=[64]).embed(images).shape == (2, 64)
    assert SmallAlexNet(10, head=[]).embed(images).shape == (2, 2304)


def test_weights_begin_with_he_s_spread_and_those_of_the_head_small() -> None:
    torch.manual_seed(0)

    network = SmallAlexNet(100, head=[512])

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
            spread = 0.01 if module is network.head else (2 / inputs) ** 0.5
            assert abs(module.weight.std().item() / spread - 1) < 0.05
            assert module.bias is not None
            assert not module.bias.any()
