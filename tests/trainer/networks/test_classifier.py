import pytest
import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.networks.classifier import Classifier, Network, Views
from services.trainer.networks.residual import ResidualNetwork


class Corner(Network):
    """Its logits are the first two pixels of the first row, so that every view can be told apart."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :2]


def classifier(network: Network, views: Views = 1) -> Classifier:
    return Classifier(network, torch.zeros(3), torch.ones(3), views).eval()


@pytest.fixture
def numbered() -> Tensor:
    """One image (1, 4, 4, 3) whose red pixels count from 0 to 15."""
    return torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1).expand(1, 4, 4, 3)


@pytest.mark.parametrize(
    ("views", "logits"),
    [
        (1, [0.0, 1.0]),
        (2, [1.5, 1.5]),  # 0 1 and, mirrored, 3 2
        # The border is mirrored: up and left begins 5 4 5 6, down and right 5 6 7 6.
        (6, [(1.5 + (5 + 6 + 5 + 6) / 4) / 2, (1.5 + (4 + 5 + 6 + 7) / 4) / 2]),
    ],
)
def test_logits_are_the_mean_of_the_views(numbered: Tensor, views: Views, logits: list[float]) -> None:
    assert classifier(Corner(), views).logits(numbered).tolist() == [logits]


@pytest.mark.parametrize("views", [1, 2, 6])
def test_views_of_a_batch_are_those_of_its_images(views: Views) -> None:
    torch.manual_seed(0)
    model = classifier(ResidualNetwork(10, [8, 8, 8], [0, 0, 1]), views)
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)

    together = model(images)

    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]))


@pytest.mark.parametrize("views", [2, 6])
def test_an_image_and_its_mirror_image_have_the_same_answer_where_both_are_seen(views: Views) -> None:
    torch.manual_seed(0)
    model = classifier(ResidualNetwork(10, [8, 8, 8], [0, 0, 0]), 2)
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)

    torch.testing.assert_close(model(images), model(images.flip(2)))


def test_temperature_divides_the_logits(numbered: Tensor) -> None:
    model = classifier(Corner())
    model.temperature = 4.0

    assert torch.equal(model(numbered), functional.softmax(torch.tensor([[0.0, 0.25]]), dim=1))


def test_a_residual_network_s_logits_are_its_head_of_its_features() -> None:
    network = ResidualNetwork(10, [8, 8, 16], [0, 0, 0]).eval()
    images = torch.randn(2, 3, 32, 32)

    assert network.embed(images).shape == (2, 16)
    assert torch.equal(network(images), network.head(network.embed(images)))
