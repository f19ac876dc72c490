"""Which samples of users are learnt from, and beside which of a base set: decided by contents alone.

Neither numbers nor times nor the order of arrival take part, so two databases with the same contents decide the same.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VALIDATION_SHARE = 0.1
"""Of users' samples, by contents, that no weight is fitted to."""


@dataclass(frozen=True)
class Candidate:
    """One sample that may be learnt from."""

    pixel_digest: str
    """SHA-256 of its pixels, 64 hexadecimal digits."""
    label: int
    givers: frozenset[str]
    """Those whose word its label is; none where one of them is trusted, and then it is kept in any case."""


@dataclass(frozen=True)
class Caps:
    """How many samples of a class those may have who are not trusted."""

    share: float
    """Of the class, samples of the base set among them; 1 is no limit."""
    least: int
    """In any case."""


@dataclass(frozen=True, eq=False)
class Base:
    """A set that users' samples are learnt beside, as far as choosing has to know it."""

    name: str
    digest: str
    """`sha256:<hex>` over all of its samples."""
    classes: NDArray[np.int64]
    """Of its training samples, in their order."""


def within_caps(
    candidates: Sequence[Candidate],
    base_counts: NDArray[np.int64],
    caps: Caps,
    beside: Callable[[int], int],
) -> list[Candidate]:
    """Return those of *candidates* that one giver at least may have in their class, in their order.

    Of too many of a giver, those with the smallest digests stay. What a share is of is counted with no more than
    `caps.least` of each giver: whoever sends a lot raises nobody's limit by it.

    Args:
        candidates: Each content once.
        base_counts: Training samples of the base in each class, (classes,).
        caps: The limits.
        beside: Returns how many samples of the base are learnt beside so many of users.
    """
    sure = _kept(candidates, lambda giver, label: caps.least)
    if caps.share >= 1:
        return list(candidates)
    total = int(base_counts.sum())
    replayed = min(1.0, beside(len(sure)) / total) if total else 0.0
    sizes = base_counts * replayed + np.bincount([each.label for each in sure], minlength=len(base_counts))
    own = Counter((giver, each.label) for each in sure for giver in each.givers)

    def limit(giver: str, label: int) -> int:
        others = float(sizes[label]) - own[giver, label]
        return max(caps.least, int(caps.share / (1 - caps.share) * others))

    return _kept(candidates, limit)


def _kept(candidates: Sequence[Candidate], limit: Callable[[str, int], int]) -> list[Candidate]:
    given: dict[tuple[str, int], list[str]] = defaultdict(list)
    for each in candidates:
        for giver in each.givers:
            given[giver, each.label].append(each.pixel_digest)
    kept = {each.pixel_digest for each in candidates if not each.givers}
    for (giver, label), digests in given.items():
        kept.update(sorted(digests, key=lambda digest: _draw(digest, b"cap"))[: limit(giver, label)])
    return [each for each in candidates if each.pixel_digest in kept]


def choose_validation(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Return the pixel digests of the samples that are validated on.

    A content's own hash decides, so that it stays where it is when others come; beyond that, a class with two samples
    or more has at least one in each part.
    """
    classes: dict[int, list[str]] = defaultdict(list)
    for each in candidates:
        classes[each.label].append(each.pixel_digest)
    chosen: set[str] = set()
    for digests in classes.values():
        ordered = sorted(digests, key=lambda digest: _draw(digest, b"validation"))
        count = sum(_draw(digest, b"validation") < VALIDATION_SHARE * 2**64 for digest in ordered)
        if len(ordered) > 1:
            count = min(max(count, 1), len(ordered) - 1)
        chosen.update(ordered[:count])
    return frozenset(chosen)


def count_beside(new: int, per_new: float, least: int) -> int:
    """Return how many samples of the base are learnt beside *new* ones of users: at least *least*, where there are."""
    return max(round(per_new * new), least)


def draw_base(base: Base, count: int, new: Sequence[Candidate], seed: str) -> NDArray[np.int64]:
    """Return positions of training samples of *base*, rising: drawn uniformly, and all where there are no new ones.

    A class that neither the new samples nor the drawn ones have gets one.

    Args:
        base: What is drawn from.
        count: How many; all where there are fewer.
        new: Training samples of users.
        seed: Hexadecimal digits; the same ones draw the same.
    """
    if not new:
        return np.arange(len(base.classes))
    order = np.random.default_rng(int(seed, 16)).permutation(len(base.classes))
    drawn = order[:count].tolist()
    there = {each.label for each in new} | set(base.classes[drawn].tolist())
    for position in order[len(drawn) :]:
        label = int(base.classes[position])
        if label not in there:
            there.add(label)
            drawn.append(position)
    return np.sort(np.array(drawn, np.int64))


def content_lines(candidates: Iterable[Candidate], validation: frozenset[str], labels: Sequence[str]) -> list[str]:
    """Return a line for each sample, `<part> <label> <pixel digest>`, by rising pixel digest."""
    return [
        f"{'validation' if each.pixel_digest in validation else 'train'} {json.dumps(labels[each.label])} "
        f"{each.pixel_digest}"
        for each in sorted(candidates, key=lambda each: each.pixel_digest)
    ]


def snapshot_digest(
    model: str, base: str, base_digest: str, drawn: Sequence[int] | NDArray[np.int64], lines: Sequence[str]
) -> str:
    """Return the SHA-256, in hex, of what a snapshot is made of: contents, labels and parts, and whose they are."""
    text = "\n".join([f"model {model}", f"base {json.dumps(base)} {base_digest}", " ".join(map(str, drawn)), *lines])
    return hashlib.sha256(text.encode()).hexdigest()


def _draw(pixel_digest: str, purpose: bytes) -> int:
    """Return a number below 2**64 that is as good as drawn; of another purpose, another one."""
    digest = hashlib.blake2b(bytes.fromhex(pixel_digest), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")
