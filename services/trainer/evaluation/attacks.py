"""How far a model can be misled by changes too small to see."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.evaluation.confusion import wilson_interval
from services.trainer.evaluation.robustness import AttackResult
from services.trainer.networks.classifier import Classifier

EPSILONS = (1.0, 2.0, 4.0, 8.0)
"""Largest change of a pixel, in units of 0 to 255: the last is the 8/255 of the literature."""


def measure_attacks(
    model: Classifier,
    samples: Samples,
    *,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[AttackResult, ...]:
    """Return the accuracy of *model* on *samples* under attack, for each of *epsilons*.

    Args:
        model: Goes into evaluation mode; its weights and their gradients stay as they are.
        samples: Each one is attacked, also those that are wrong already.
        epsilons: Largest changes, in units of 0 to 255.
        steps: Of each attack.
        seed: Of the random starts.
        batch_size: Images attacked together.
        on_progress: Called with the fraction done, 0 to 1.

    Raises:
        InvalidInput: There are no samples, or an epsilon or the steps are below their limits.
    """
    if not len(samples):
        raise InvalidInput("an attack needs at least one sample; give some")
    results = []
    for done, epsilon in enumerate(epsilons):
        generator = torch.Generator().manual_seed(seed)
        correct = 0
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            images, labels = torch.tensor(batch.images), torch.tensor(batch.labels)  # copies: samples may be read-only
            misleading = attack(model, images, labels, epsilon=epsilon, steps=steps, generator=generator)
            with torch.inference_mode():
                correct += int((model(misleading).argmax(1).cpu() == labels).sum())
            on_progress((done + min(1.0, (start + batch_size) / len(samples))) / len(epsilons))
        low, high = wilson_interval(correct, len(samples))
        results.append(
            AttackResult(
                attack="PGD",
                epsilon=epsilon,
                steps=steps,
                samples=len(samples),
                accuracy=correct / len(samples),
                accuracy_low=low,
                accuracy_high=high,
            )
        )
    return tuple(results)


def attack(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return images near *images* that *model* is likely to get wrong, by projected gradient descent.

    From a random start, each step moves every pixel by 2.5 epsilon / steps to where the loss grows, then back to within
    epsilon of the clean image (Madry et al. 2018).

    Args:
        model: Knows itself attacked: the gradients are its own. Goes into evaluation mode.
        images: uint8 (B, H, W, 3).
        labels: The true ones, int64 (B,).
        epsilon: Largest change of a pixel, in units of 0 to 255.
        steps: How often the images move.
        generator: Of the random start; on the CPU.

    Returns:
        float32 (B, H, W, 3) on the model's device, between 0 and 255 and in general no whole numbers, as is usual in
        the literature.

    Raises:
        InvalidInput: *epsilon* is negative, or *steps* is below 1.
    """
    if not epsilon >= 0 or steps < 1:
        raise InvalidInput(f"epsilon is {epsilon} with {steps} steps; an attack needs at least 0 and 1 step")
    model.eval()
    device = model.mean.device
    clean, labels = images.to(device).float(), labels.to(device)
    lowest, highest = (clean - epsilon).clamp_min(0), (clean + epsilon).clamp_max(255)
    noise = (torch.rand(clean.shape, generator=generator) * 2 - 1).to(device)
    moved = (clean + epsilon * noise).clamp(lowest, highest)
    for _ in range(steps):
        moved.requires_grad_()
        # From the logits: behind the softmax the gradient of a sure answer would vanish.
        loss = functional.cross_entropy(model.logits(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + 2.5 * epsilon / steps * gradient.sign()
        moved = moved.clamp(lowest, highest)
    return moved
