import pytest
import torch
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.evaluation.attacks import attack, measure_attacks
from services.trainer.networks.classifier import Classifier


@pytest.fixture
def images(unseen: Samples) -> Tensor:
    return torch.from_numpy(unseen.images)


@pytest.fixture
def labels(unseen: Samples) -> Tensor:
    return torch.from_numpy(unseen.labels)


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


def test_attack_misleads_far_more_than_noise_of_its_size(model: Classifier, images: Tensor, labels: Tensor) -> None:
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = (images + 2.0 * signs).clamp(0, 255)

    attacked = attack(model, images, labels, epsilon=2.0, steps=10)

    assert accuracy(model, noisy, labels) > 0.3
    assert accuracy(model, attacked, labels) < 0.1


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_changes_stay_within_epsilon_and_within_an_image(
    epsilon: float, model: Classifier, images: Tensor, labels: Tensor
) -> None:
    attacked = attack(model, images[:20], labels[:20], epsilon=epsilon, steps=5)

    change = (attacked - images[:20].float()).abs()
    assert change.max() <= epsilon + 1e-4
    assert change.max() > 0.99 * epsilon
    assert attacked.min() >= 0
    assert attacked.max() <= 255


def test_epsilon_zero_changes_nothing(model: Classifier, images: Tensor, labels: Tensor) -> None:
    assert torch.equal(attack(model, images[:5], labels[:5], epsilon=0.0, steps=3), images[:5].float())


def test_attack_leaves_weights_and_gradients_alone(model: Classifier, images: Tensor, labels: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = None

    attack(model.train(), images[:5], labels[:5], epsilon=4.0, steps=2)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attack_also_misleads_an_answer_from_several_views(model: Classifier, images: Tensor, labels: Tensor) -> None:
    views = Classifier(model.network, model.mean, model.std, views=2)

    attacked = attack(views, images[:100], labels[:100], epsilon=8.0, steps=10)

    assert accuracy(views, attacked, labels[:100]) < 0.02


def test_accuracy_falls_as_epsilon_grows(model: Classifier, images: Tensor, labels: Tensor, unseen: Samples) -> None:
    small, medium, large = measure_attacks(model, unseen, epsilons=(0.0, 1.0, 4.0), steps=4, batch_size=150)

    assert small.accuracy == pytest.approx(accuracy(model, images, labels))
    assert small.accuracy > medium.accuracy > large.accuracy
    assert medium.accuracy_low < medium.accuracy < medium.accuracy_high
    assert (large.attack, large.epsilon, large.steps, large.samples) == ("PGD", 4.0, 4, 200)


def test_same_seed_gives_the_same_accuracy(model: Classifier, unseen: Samples) -> None:
    first, second = (measure_attacks(model, unseen[:50], epsilons=[1.0], steps=3, seed=5) for _ in range(2))

    assert first == second


def test_read_only_samples_are_attacked(model: Classifier, unseen: Samples) -> None:
    images = unseen.images[:2].copy()
    images.flags.writeable = False

    (result,) = measure_attacks(model, Samples(images, unseen.labels[:2]), epsilons=[1.0], steps=1)

    assert result.samples == 2


def test_progress_grows_to_one(model: Classifier, unseen: Samples) -> None:
    told: list[float] = []

    measure_attacks(model, unseen[:3], epsilons=(1.0, 2.0), steps=1, batch_size=2, on_progress=told.append)

    assert told == pytest.approx([1 / 3, 1 / 2, 5 / 6, 1])


@pytest.mark.parametrize(("epsilon", "steps"), [(-1.0, 5), (float("nan"), 5), (8.0, 0)])
def test_impossible_attacks_are_rejected(
    epsilon: float, steps: int, model: Classifier, images: Tensor, labels: Tensor
) -> None:
    with pytest.raises(InvalidInput, match="needs at least 0 and 1 step"):
        attack(model, images[:1], labels[:1], epsilon=epsilon, steps=steps)


def test_no_samples_are_rejected(model: Classifier, unseen: Samples) -> None:
    with pytest.raises(InvalidInput, match="at least one sample"):
        measure_attacks(model, unseen[:0])
