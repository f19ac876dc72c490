"""How features and probabilities are kept, in rows and in files: float16, little-endian."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[np.floating[Any]]) -> bytes:
    """Return *values* as they are kept in rows."""
    return values.astype("<f2").tobytes()


def unpack(data: bytes) -> NDArray[np.float16]:
    """Return what `pack` was given, (n,)."""
    return np.frombuffer(data, "<f2").astype(np.float16)


def features_path(prepared: Path, encoder: str, base_digest: str) -> Path:
    """Return where the features of a base set are kept, its training samples first, float16 (n, f).

    Args:
        prepared: Folder of prepared sets.
        encoder: Digest of the encoder.
        base_digest: `sha256:<hex>` of the set.
    """
    return prepared / f"features-{encoder[:16]}-{base_digest.removeprefix('sha256:')[:16]}.npy"
