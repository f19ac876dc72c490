"""Parts of samples for tests that need no whole data set."""

import numpy as np

from services.trainer.data.collection import digest_contents
from services.trainer.data.samples import Samples
from services.trainer.data.splitting import choose


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Part *samples* in two, as a data set is; the second holds *fraction* of each class, rounded."""
    chosen = choose(samples.labels, digest_contents(samples.images, np.arange(len(samples))), fraction, seed)
    return samples[~chosen], samples[chosen]
