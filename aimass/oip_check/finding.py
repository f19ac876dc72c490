"""What a check is, and what it finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from aimass.oip_check.server import Server


class Verdict(StrEnum):
    """How a server's answer is judged."""

    ok = "ok"
    breaks = "breaks"
    warns = "warns"
    skipped = "skipped"


@dataclass(frozen=True)
class Outcome:
    """What came, judged."""

    verdict: Verdict
    came: str


def ok(came: str) -> Outcome:
    """Judge that every client can use what came."""
    return Outcome(Verdict.ok, came)


def breaks(came: str) -> Outcome:
    """Judge that a client fails on what came."""
    return Outcome(Verdict.breaks, came)


def warns(came: str) -> Outcome:
    """Judge that clients live with what came, but are misled or get less."""
    return Outcome(Verdict.warns, came)


def skipped(reason: str) -> Outcome:
    """Say why there was nothing to judge."""
    return Outcome(Verdict.skipped, reason)


@dataclass(frozen=True)
class Check:
    """One rule of the protocol, or one thing that a stock client relies on."""

    id: str
    asked: str
    fact: str
    clients: Mapping[str, str]
    """What happens to whom where the rule does not hold: client -> consequence."""
    run: Callable[[Server], Outcome]


@dataclass(frozen=True)
class Finding:
    """A check's outcome at one server."""

    id: str
    area: str
    asked: str
    came: str
    verdict: Verdict
    fact: str
    clients: Mapping[str, str] = field(default_factory=dict)
    """Whom it hits and how; empty where nobody is hit."""
