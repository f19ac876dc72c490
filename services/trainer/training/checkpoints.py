"""The state of a training run on disk, from which it goes on as if it had not been interrupted."""

from pathlib import Path
from typing import Any

import torch

from services.common.errors import Conflict
from services.trainer.runs.folder import replacing


def save(path: Path, content: dict[str, Any]) -> None:
    """Write *content* (tensors, numbers, strings, lists and dicts of these) to *path*, as `replacing` does."""
    with replacing(path) as file:
        torch.save(content, file)


def load(path: Path, options: str) -> dict[str, Any] | None:
    """Return what was saved at *path* for the same *options*, or nothing where no checkpoint lies there.

    Raises:
        Conflict: It belongs to a run with other options, or is damaged.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for a damaged file
        raise Conflict(f"{path} is damaged: {error}; delete it to begin this run anew") from error
    if content["options"] != options:
        raise Conflict(f"{path} belongs to a run with other options; use a fresh folder or the same options")
    return content
