"""What is wrong with samples: found, told, and left to the options to decide on."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["unreadable", "conflict", "leak", "duplicate", "near-duplicate", "mislabelled"]

LEFT_OUT: tuple[Kind, ...] = ("unreadable", "conflict", "leak")
"""Kinds that stop a run or, with the option `clean`, are left out; the others are only reported."""

NAMED = 10
"""Samples that one sentence names."""


class Problem(BaseModel):
    """One sample with which something is wrong.

    `unreadable`: no picture could be made of it. `conflict`: equal pixels have different labels. `leak`: equal pixels
    are in a part that is measured on. `duplicate`: equal pixels came earlier under the same label. `near-duplicate`:
    much the same picture. `mislabelled`: a model that has not seen it is sure of another label.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    position: int
    """In the collection."""
    sample: str
    """Its name."""
    detail: str
    """What is wrong, in words."""
    other: str = ""
    """Name of the other sample that takes part."""
    other_position: int | None = None


def list_names(problems: Sequence[Problem]) -> str:
    """Return the samples' names with what is wrong, the first `NAMED` of them."""
    named = "; ".join(f"{each.sample}: {each.detail}" for each in problems[:NAMED])
    return named + (f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else "")
