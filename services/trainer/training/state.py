"""The state of a training run: what a step changes and a checkpoint holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from services.common.errors import InvalidInput
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import BEST_FILE
from services.trainer.training import checkpoints
from services.trainer.training.freezing import freeze
from services.trainer.training.group import Group
from services.trainer.training.hardware import choose_precision
from services.trainer.training.results import EpochResult


@dataclass
class State:
    """Weights, optimiser and figures of a run that goes on."""

    model: Classifier
    options: TrainingOptions
    checkpoint: Path | None
    group: Group
    history: list[EpochResult] = field(default_factory=list)
    batch: int = 0
    """Batches done of the present epoch."""
    seconds: float = 0.0
    """Spent on them before this process."""
    rate: float = 0.0

    def __post_init__(self) -> None:
        options = self.options
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.frozen = freeze(self.model.network, options.freeze)
        self.optimizer = _build_optimizer(self.model, options)
        device = self.model.mean.device
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum over the present epoch, and over the steps since the last report; read rarely: it stops a GPU."""
        self.reported = 0
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=choose_precision(options.precision, device) == torch.float16
        )
        self.averaged: AveragedModel | None = None
        if options.average_decay:
            average = get_ema_multi_avg_fn(options.average_decay)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    @property
    def judged(self) -> Classifier:
        """The weights to measure and to keep."""
        if self.averaged is None:
            return self.model
        assert isinstance(self.averaged.module, Classifier)
        return self.averaged.module

    @property
    def best(self) -> EpochResult | None:
        """The epoch with the highest validation accuracy, the first of equals."""
        return max(self.history, key=lambda result: result.validation_accuracy, default=None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing."""
        done, patience = len(self.history), self.options.early_stopping
        stale = bool(patience and self.best and done - self.best.epoch >= patience)
        return done >= self.options.epochs or stale

    def set_rate(self, rate: float, momentum: float) -> None:
        """Use *rate* and *momentum* from the next step on."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum

    def step(self, loss: Tensor) -> None:
        """Move the weights one step against the gradient of *loss*."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        if self.options.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.losses += loss.detach()
        self.batch += 1

    def recent_loss(self) -> float:
        """Return the mean loss since it was last asked for.

        Raises:
            InvalidInput: It is not finite.
        """
        loss = self.group.average(self.losses[1]).item() / max(1, self.batch - self.reported)
        self.losses[1], self.reported = 0, self.batch
        return self.finite(loss)

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch.

        Raises:
            InvalidInput: It is not finite.
        """
        return self.finite(self.group.average(self.losses[0]).item() / self.batch)

    def finite(self, loss: float) -> float:
        """Return *loss*.

        Raises:
            InvalidInput: It is not finite.
        """
        if not abs(loss) < float("inf"):
            raise InvalidInput(
                f"the loss is {loss} in epoch {len(self.history) + 1}; lower learning_rate "
                f"{self.options.learning_rate} or set gradient_clip",
                reason="DIVERGED",
                field="learning_rate",
            )
        return loss

    def end_epoch(self, result: EpochResult) -> None:
        """Take *result* in and make the epoch safe."""
        before = self.best
        self.history.append(result)
        self.batch, self.reported, self.seconds = 0, 0, 0.0
        self.losses.zero_()
        if self.options.keep == "best" and self.best is not before and self.group.rank == 0:
            self._save_best()
        self.save()

    def keep(self) -> None:
        """Give the model the weights that the options want."""
        weights: Any = self.judged.state_dict()
        if self.options.keep == "best":
            weights = self._best_weights()
        self.model.load_state_dict(weights)

    def _save_best(self) -> None:
        # Before the checkpoint: if the process dies between the two, the epoch is done again and gives the same.
        weights = {name: value.detach().cpu().clone() for name, value in self.judged.state_dict().items()}
        if self.checkpoint is None:
            self._best = weights
        else:
            checkpoints.save(self._best_path, {"options": self._identity, "model": weights})

    def _best_weights(self) -> dict[str, Tensor]:
        if self.checkpoint is None:
            return self._best
        content = checkpoints.load(self._best_path, self._identity)
        assert content is not None
        weights: dict[str, Tensor] = content["model"]
        return weights

    @property
    def _best_path(self) -> Path:
        assert self.checkpoint is not None
        return self.checkpoint.with_name(BEST_FILE)

    @property
    def _identity(self) -> str:
        return self.options.model_dump_json()

    def save(self) -> None:
        """Write the checkpoint, where one is wanted."""
        self.losses = self.group.average(self.losses)  # the first worker's checkpoint is for all
        if self.checkpoint is None or self.group.rank:
            return
        content = {
            "options": self._identity,
            "history": [result.model_dump() for result in self.history],
            "batch": self.batch,
            "seconds": self.seconds,
            "rate": self.rate,
            "losses": self.losses,
            "reported": self.reported,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        checkpoints.save(self.checkpoint, content)

    def resume(self) -> list[EpochResult]:
        """Go on from the checkpoint, if there is one, and return the epochs that it knows."""
        content = checkpoints.load(self.checkpoint, self._identity) if self.checkpoint else None
        if content is None:
            return []
        self.model.load_state_dict(content["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.losses.copy_(content["losses"])
        self.batch, self.reported = content["batch"], content["reported"]
        self.seconds, self.rate = content["seconds"], content["rate"]
        self.history = [EpochResult.model_validate(result) for result in content["history"]]
        return list(self.history)


def _build_optimizer(model: Classifier, options: TrainingOptions) -> torch.optim.Optimizer:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    scales, shifts = [norm.weight for norm in norms], [norm.bias for norm in norms]
    own = {id(parameter) for parameter in (*scales, *shifts)}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in own]
    kinds = (
        (weights, options.weight_decay, 1.0),
        (scales, 0.0, 1.0),
        (shifts, 0.0, options.bias_learning_rate_factor),
    )
    groups: list[dict[str, Any]] = []
    for parameters, decay, factor in kinds:
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        if learnt:
            groups.append({"params": learnt, "weight_decay": decay, "factor": factor})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(options.momentum, 0.999))
    nesterov = options.nesterov and options.momentum > 0
    return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, nesterov=nesterov, foreach=True)
