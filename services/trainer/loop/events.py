"""Events of the loop: what has happened to a model, by number, without gaps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.trainer.loop import cycle_payloads, payloads
from services.trainer.loop.payloads import Payload


@dataclass(frozen=True)
class Event:
    """Something that has happened."""

    model: str
    number: int
    """Within the model, from 1, without gaps."""
    cycle: int
    """Number of the cycle that it belongs to; 0 for none."""
    time: datetime
    """With its zone."""
    payload: Payload

    @property
    def kind(self) -> str:
        """Name of what has happened, such as `cycle.started`."""
        return self.payload.kind

    @property
    def key(self) -> str | None:
        """What may be there once for a model; None where the number alone keeps the event from being written twice."""
        return self.payload.key(self.cycle)


def _kinds() -> Iterator[tuple[str, type[Payload]]]:
    for module in (payloads, cycle_payloads):
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Payload) and "kind" in vars(each):
                yield each.kind, each


KINDS: Mapping[str, type[Payload]] = MappingProxyType(dict(_kinds()))
"""Payloads by the kind of their events."""


def parse_payload(kind: str, fields: Mapping[str, Any]) -> Payload:
    """Return the payload of an event as the log has it.

    Raises:
        InvalidInput: There is no such kind, or a field does not fit it.
    """
    if kind not in KINDS:
        raise InvalidInput(f"events have no kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}", field="kind")
    try:
        return KINDS[kind].model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidInput(
            f"the payload of an event {kind!r} does not fit: {problems}; write it as {KINDS[kind].__name__} has it",
            field="payload",
        ) from error
