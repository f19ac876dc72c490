"""Old samples that are learnt again beside new ones, so that what was learnt is not forgotten."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Conflict
from services.trainer.data.collection import number_contents
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples


def add_replay(new: Dataset, old: Dataset, per_new: float, seed: int) -> tuple[Dataset, int]:
    """Add samples of *old* to *new*, to be judged on both sets.

    Both sets were split without knowledge of each other, so a picture that one of them learns from the other may keep
    for judging; it is left out of what is learnt.

    Args:
        new: All of its training samples stay, but for those.
        old: Its validation and test samples are added whole.
        per_new: Training samples of *old* beside each one of *new*, drawn uniformly; all where there are fewer.
        seed: Of the draw.

    Returns:
        The set, and how many training samples were left out.

    Raises:
        Conflict: The sets have other labels or pixels.
    """
    if (old.labels, old.spec) != (new.labels, new.spec):
        raise Conflict(
            f"data set {new.name!r} has other labels or pixels than {old.name!r}, which the model to start from was "
            "trained on; set replay to 0 to train on the new one alone"
        )
    count = min(len(old.train), round(per_new * len(new.train)))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(old.train))[:count])
    train = Samples.joined(new.train, old.train[drawn])
    validation = Samples.joined(new.validation, old.validation)
    test = Samples.joined(new.test, old.test)
    judged = _is_among(train, Samples.joined(validation, test))
    joined = replace(new, name=f"{new.name}+{old.name}", train=train[~judged], validation=validation, test=test)
    return joined, int(judged.sum())


def _is_among(samples: Samples, others: Samples) -> NDArray[np.bool_]:
    """Return for each of *samples* whether *others* has the same picture."""
    images = np.concatenate([samples.images, others.images])
    contents = number_contents(images, np.arange(len(images)))
    return np.isin(contents[: len(samples)], contents[len(samples) :])
