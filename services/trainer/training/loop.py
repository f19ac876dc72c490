"""The training loop."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from services.common.errors import Conflict, InvalidInput
from services.trainer.data.datasets import Dataset, channel_statistics
from services.trainer.data.samples import Samples
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions
from services.trainer.runs.record import EpochResult
from services.trainer.training.batches import epoch_batches

_WHITENING_SAMPLES = 5_000
_EVALUATION_BATCH = 500


def train(
    model: Classifier,
    dataset: Dataset,
    options: TrainingOptions,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> list[EpochResult]:
    """Fit *model* to the training split; it leaves in evaluation mode with its final (averaged) weights.

    Given the same options, samples, software and number of threads, the result is the same, also when the run was
    interrupted and resumed from *checkpoint* in between.

    Args:
        model: From `build_model`; changed in place.
        dataset: The test split is not touched.
        options: How to train.
        checkpoint: File that is written after each epoch and continued from where it exists.
        on_step: Called after each step with (steps done, all steps, training loss).
        on_epoch: Called after each epoch, and after its checkpoint is safe.

    Returns:
        One result per epoch, also those from before a resumption.

    Raises:
        Conflict: The checkpoint belongs to other options.
        InvalidInput: The loss is no longer finite: the learning rate is too high.
    """
    state = _State(model, options)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    steps_per_epoch = max(1, len(dataset.train) // options.batch_size)
    steps = options.epochs * steps_per_epoch
    precision = torch.bfloat16 if uses_bfloat16(options) else torch.float32

    for epoch in range(len(state.history), options.epochs):
        started = time.monotonic()
        losses: list[float] = []
        model.train()
        batches = epoch_batches(
            dataset.train, options.augmentation, batch_size=options.batch_size, seed=options.seed, epoch=epoch
        )
        for step, (images, labels) in enumerate(batches, start=epoch * steps_per_epoch):
            rate = state.set_rate(rate_at(step / steps, options))
            inputs = model.normalise(images)
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                logits = model.network(inputs)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=options.label_smoothing)
            state.optimizer.zero_grad()
            torch.autograd.backward(loss)
            state.optimizer.step()
            state.average()
            losses.append(loss.item())
            on_step(step + 1, steps, losses[-1])
        mean_loss = sum(losses) / len(losses)
        if not mean_loss < float("inf"):
            raise InvalidInput(
                f"the loss is {mean_loss} in epoch {epoch + 1}; lower learning_rate {options.learning_rate}"
            )
        validation_loss, validation_accuracy = evaluate(state.best, dataset.validation)
        result = EpochResult(
            epoch=epoch + 1,
            learning_rate=rate,
            train_loss=mean_loss,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            seconds=time.monotonic() - started,
        )
        state.history.append(result)
        if checkpoint is not None:
            state.save(checkpoint)
        on_epoch(result)

    model.load_state_dict(state.best.state_dict())
    model.eval()
    return state.history


def build_model(dataset: Dataset, options: TrainingOptions) -> Classifier:
    """Return an untrained classifier: weights from the seed, normalisation from the training images."""
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    torch.manual_seed(options.seed)
    network = build_network(options.network, len(dataset.labels), options.network_options)
    mean, std = channel_statistics(dataset.train.images)
    model = Classifier(network, torch.from_numpy(mean), torch.from_numpy(std))
    network.initialise_from(model.normalise(torch.from_numpy(dataset.train.images[:_WHITENING_SAMPLES])))
    return model.to(memory_format=torch.channels_last)


def evaluate(model: Classifier, samples: Samples) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy) of *model* on *samples*, in float32."""
    probabilities = predict(model, samples)
    labels = torch.from_numpy(samples.labels)
    loss = functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item()
    return loss, (probabilities.argmax(1) == labels).float().mean().item()


def predict(model: Classifier, samples: Samples) -> Tensor:
    """Return the probabilities (n, classes) of *samples*, float32."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in torch.split(torch.from_numpy(samples.images), _EVALUATION_BATCH)])


def rate_at(progress: float, options: TrainingOptions) -> float:
    """Learning rate when *progress* (0 to 1) of all steps is done: a straight climb, then a straight fall to zero."""
    if progress < options.warm_up:
        return options.learning_rate * (0.1 + 0.9 * progress / options.warm_up)
    return options.learning_rate * (1 - progress) / (1 - options.warm_up)


def uses_bfloat16(options: TrainingOptions) -> bool:
    """Whether activations and gradients are bfloat16 on this machine."""
    if options.precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return options.precision == "bfloat16"


@dataclass
class _State:
    """What a checkpoint holds."""

    model: Classifier
    options: TrainingOptions
    history: list[EpochResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        norms = [p for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
        shifts = [p for p in norms if p.requires_grad]
        own = {id(p) for p in norms}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        groups = [
            {"params": weights, "weight_decay": self.options.weight_decay, "factor": 1.0},
            {"params": shifts, "weight_decay": 0.0, "factor": self.options.bias_learning_rate_factor},
        ]
        momentum = self.options.momentum
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, foreach=True)
        average = get_ema_multi_avg_fn(self.options.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    @property
    def best(self) -> Classifier:
        """The weights to evaluate and export."""
        if not self.options.average_decay:
            return self.model
        assert isinstance(self.averaged.module, Classifier)
        return self.averaged.module

    def average(self) -> None:
        if self.options.average_decay:
            self.averaged.update_parameters(self.model)

    def set_rate(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def save(self, path: Path) -> None:
        aside = path.with_name(path.name + ".part")
        content = {
            "options": self.options.model_dump_json(),
            "history": [result.model_dump() for result in self.history],
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(content, aside)
        aside.replace(path)

    def load(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)
        if content["options"] != self.options.model_dump_json():
            raise Conflict(f"{path} belongs to a run with other options; use a fresh folder or the same options")
        self.model.load_state_dict(content["model"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.history = [EpochResult.model_validate(result) for result in content["history"]]
