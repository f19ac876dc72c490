"""Learning from another model's answers."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional

from services.trainer.options import TrainingOptions
from services.trainer.training.loop import Loss


class Teacher(Protocol):
    """A model that is learnt from, wherever it runs."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32 (B, classes), of uint8 *images* (B, H, W, 3), on the images' device."""


def distilled(teacher: Teacher, options: TrainingOptions) -> Loss:
    """Return the loss of a student that sees the labels and the answers of *teacher* to the same images.

    The teacher is asked about every batch as the student sees it, augmented and mixed: soft labels of a mixture and
    the teacher's answer to it agree.

    Args:
        teacher: Its labels must be the student's, in the same order.
        options: Weight and temperature of the teacher, and the smoothing of the labels.
    """
    weight, temperature = options.distillation.weight, options.distillation.temperature

    def loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        own = functional.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        return (1 - weight) * own + weight * imitation(logits, teacher(images), temperature)

    return loss


def imitation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return T² KL(teacher || student), the mean over the batch in nats, both softened by *temperature* T.

    Softened probabilities are p^(1/T), normalised: the softmax of logits divided by T. The factor T² keeps the size of
    gradients independent of T. From: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).

    Args:
        logits: Of the student, (B, classes).
        taught: Probabilities of the teacher, (B, classes); logits up to a constant are their logarithms.
        temperature: 1 or more.
    """
    softened = functional.softmax(taught.clamp_min(1e-12).log() / temperature, dim=1)
    student = functional.log_softmax(logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, softened, reduction="batchmean")
