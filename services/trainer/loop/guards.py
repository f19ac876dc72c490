"""What a candidate must not spoil, however accurate it is over all."""

import math
from collections.abc import Iterator

from services.trainer.loop.policy import GuardPolicy
from services.trainer.loop.values import GuardFigures, Ruling

HARM = 0.05
"""Chance that a candidate is refused as worse that is not: on one stream, or over all classes."""


def without_bound(policy: GuardPolicy) -> str:
    """Return the key of the first guard that has no bound; empty where all have one."""
    missing = [name for name in type(policy).model_fields if getattr(policy, name) is None]
    return f"guard.{missing[0]}" if missing else ""


def violation(figures: GuardFigures, policy: GuardPolicy) -> Ruling | None:
    """Return which guard refuses the candidate; None where none does, or not yet."""
    for ruling in _compared(figures, policy):
        if ruling.figure is not None and ruling.bound is not None and ruling.figure > ruling.bound:
            return ruling
    return None


def not_measured(figures: GuardFigures, policy: GuardPolicy) -> str:
    """Return the key of the first guard whose figure is still missing; empty where all are there."""
    missing = [ruling.subject for ruling in _compared(figures, policy) if ruling.figure is None]
    return missing[0] if missing else ""


def _compared(figures: GuardFigures, policy: GuardPolicy) -> Iterator[Ruling]:
    """Yield every guard with its figure and its bound; a figure above the bound refuses.

    The classes share the chance of a wrong refusal, so that each needs evidence of (number of classes) / `HARM`.
    """
    classes = math.log(max(1, figures.class_count) / HARM)
    yield Ruling(rule="CLASS_DROP", subject="guard.class_drop", figure=figures.class_log_e, bound=classes)
    for name in ("calibration_rise", "latency_ratio", "size_ratio", "corrupted_drop", "holdout_drop"):
        yield Ruling(
            rule=name.upper(), subject=f"guard.{name}", figure=getattr(figures, name), bound=getattr(policy, name)
        )
