"""A trained classifier in a file: what other runs start from."""

import pickle
from pathlib import Path
from typing import Any

import torch

from services.common.errors import InvalidInput, NotFound
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.restructuring import restructure
from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import replacing


def save_weights(model: Classifier, path: Path, options: TrainingOptions, labels: tuple[str, ...]) -> None:
    """Write *model* so that `load_weights` can rebuild it, also where it was pruned; *path* is replaced atomically.

    Args:
        model: Stays as it is.
        path: A torch file that holds tensors and plain values, no code.
        options: Name the network and its options.
        labels: In the order of the outputs.
    """
    content = {
        "network": options.network,
        "network_options": options.network_options,
        "labels": list(labels),
        "views": model.views,
        "temperature": model.temperature,
        "weights": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    }
    with replacing(path) as file:
        torch.save(content, file)


def load_weights(path: Path, *, allow_code: bool = False) -> tuple[Classifier, tuple[str, ...]]:
    """Return the classifier in *path*, on the CPU and in evaluation mode, and its labels.

    Args:
        path: From `save_weights`.
        allow_code: As in `build_network`.

    Raises:
        NotFound: There is no such file.
        InvalidInput: The file is damaged, or its weights do not fit the network that it names.
        Unsupported: The network is code and none may run.
    """
    content = _read(path)
    weights, labels = content["weights"], tuple(content["labels"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
        network = build_network(content["network"], len(labels), content["network_options"], allow_code=allow_code)
    model = Classifier(network, torch.zeros(3), torch.ones(3), views=content["views"])
    restructure(model, weights)
    model.load_state_dict(weights)
    model.temperature = content["temperature"]
    return model.eval(), labels


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return {
            name: content[name] for name in ("network", "network_options", "labels", "views", "temperature", "weights")
        }
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; train a model first, its run leaves its weights there") from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"{path} holds no weights that can be read: {error}; train the model again") from error
