import pytest
import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.options import TrainingOptions
from services.trainer.training.distillation import distilled, imitation

LABELS = torch.tensor([0, 2, 1, 1])
IMAGES = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def taught() -> Tensor:
    """Logits of the teacher."""
    return 3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def options(weight: float, temperature: float = 4.0, label_smoothing: float = 0.0) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {
            "recipe": "test",
            "epochs": 1,
            "learning_rate": 0.1,
            "label_smoothing": label_smoothing,
            "distillation": {"teacher": "run:other", "weight": weight, "temperature": temperature},
        }
    )


def test_imitation_is_the_scaled_divergence_of_softened_answers(logits: Tensor, taught: Tensor) -> None:
    p, q = (functional.softmax(each / 4, dim=1) for each in (taught, logits))
    expected = 16 * (p * (p / q).log()).sum(dim=1).mean()

    found = imitation(logits, functional.softmax(taught, dim=1), 4.0)

    assert torch.allclose(found, expected, atol=1e-5)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(taught: Tensor) -> None:
    student = (taught + 5).requires_grad_()  # logits are equal up to a constant

    loss = imitation(student, functional.softmax(taught, dim=1), 2.0)
    loss.backward()

    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_a_teacher_that_is_sure_gives_finite_losses(logits: Tensor) -> None:
    loss = imitation(logits, torch.eye(3)[LABELS], 1.0)
    loss.backward()

    assert loss.item() == pytest.approx(functional.cross_entropy(logits, LABELS).item(), abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradients_keep_their_size_at_any_temperature(logits: Tensor, taught: Tensor, temperature: float) -> None:
    (gradient,) = torch.autograd.grad(imitation(logits, functional.softmax(taught, dim=1), temperature), logits)

    assert 0.05 < gradient.norm() < 2


@pytest.mark.parametrize("labels", [LABELS, functional.one_hot(LABELS, 3) * 0.7 + 0.1], ids=["classes", "mixed"])
def test_the_loss_weighs_labels_against_the_teacher(logits: Tensor, taught: Tensor, labels: Tensor) -> None:
    probabilities = functional.softmax(taught, dim=1)
    loss = distilled(lambda images: probabilities, options(0.25, label_smoothing=0.1))

    own = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    expected = 0.75 * own + 0.25 * imitation(logits, probabilities, 4.0)
    assert torch.allclose(loss(logits, labels, IMAGES), expected)


def test_the_teacher_is_asked_about_the_images_of_the_batch(logits: Tensor) -> None:
    seen: list[Tensor] = []

    def teacher(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.full((4, 3), 1 / 3)

    distilled(teacher, options(0.9))(logits, LABELS, IMAGES)

    assert [images is IMAGES for images in seen] == [True]
