"""What a model that training starts from has learnt: learnt again beside new samples, and never judged on."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Conflict, InvalidInput
from services.trainer.data.collection import digest_contents
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples


def contents_of(samples: Samples) -> NDArray[np.uint64]:
    """Return what stands for the pictures of *samples*, each once, uint64, rising."""
    return np.unique(_digests(samples))


def leave_out_learnt(dataset: Dataset, learnt: NDArray[np.uint64]) -> tuple[Dataset, int]:
    """Leave out what would be judged on and was learnt before, as it may be by another split or in another set.

    Args:
        dataset: Its training samples stay.
        learnt: As `contents_of` gives it.

    Returns:
        The set, and how many validation and test samples were left out.
    """
    validation, test = (_without(part, learnt) for part in (dataset.validation, dataset.test))
    count = len(dataset.validation) + len(dataset.test) - len(validation) - len(test)
    return replace(dataset, validation=validation, test=test), count


def check_judged(dataset: Dataset, source: str) -> None:
    """Refuse a set that leaves a class without samples to judge on.

    Args:
        dataset: What `leave_out_learnt` has left.
        source: The option `start_from`.

    Raises:
        InvalidInput: The validation or the test part has none of some class.
    """
    for part, samples in (("validation", dataset.validation), ("test", dataset.test)):
        counts = np.bincount(samples.labels, minlength=len(dataset.labels))
        if not counts.all():
            raise InvalidInput(
                f"{source} has learnt every {part} sample of class {dataset.labels[counts.argmin()]!r} in data set "
                f"{dataset.name!r}, so that nothing is left to judge on; use the split_seed and the fractions that it "
                "was trained with, or other samples",
                reason="ALL_LEARNT",
                field="start_from",
            )


def add_replay(new: Dataset, old: Dataset, per_new: float, seed: int) -> tuple[Dataset, int]:
    """Add samples of *old* that *new* does not have, to be judged on both sets.

    Both sets were split without knowledge of each other, so a picture that one of them learns from the other may keep
    for judging; it is not learnt. One that both judge on, one of them in the test part, is tested on.

    Args:
        new: All of its training samples stay, but for those.
        old: Its validation and test samples are added whole.
        per_new: Training samples of *old* beside each one of *new*, drawn uniformly; all where there are fewer.
        seed: Of the draw.

    Returns:
        The set, and how many training samples of *new* were left out.

    Raises:
        Conflict: The sets have other labels or pixels.
    """
    if (old.labels, old.spec) != (new.labels, new.spec):
        raise Conflict(
            f"data set {new.name!r} has other labels or pixels than {old.name!r}, which the model to start from was "
            "trained on; set replay to 0 to train on the new one alone"
        )
    more_test = _without(old.test, contents_of(new.test))
    test = _joined(new.test, more_test)
    tested = contents_of(test)
    more_validation = _without(old.validation, np.union1d(contents_of(new.validation), tested))
    validation = _joined(_without(new.validation, tested), more_validation)
    judged = np.union1d(contents_of(validation), tested)
    learnt = _without(new.train, judged)
    others = _without(old.train, np.union1d(contents_of(learnt), judged))
    count = min(len(others), round(per_new * len(new.train)))
    drawn = others[np.sort(np.random.default_rng(seed).permutation(len(others))[:count])]
    added = len(more_test) + len(more_validation) + len(drawn)
    joined = replace(
        new,
        name=f"{new.name}+{old.name}" if added else new.name,
        train=_joined(learnt, drawn),
        validation=validation,
        test=test,
    )
    return joined, len(new.train) - len(learnt)


def _digests(samples: Samples) -> NDArray[np.uint64]:
    return digest_contents(samples.images, np.arange(len(samples)))


def _without(samples: Samples, contents: NDArray[np.uint64]) -> Samples:
    """Return those of *samples* whose pictures are not among *contents*."""
    among = np.isin(_digests(samples), contents)
    return samples[~among] if among.any() else samples  # all of them may be more than memory holds


def _joined(samples: Samples, more: Samples) -> Samples:
    return Samples.joined(samples, more) if len(more) else samples
