"""Tables of the loop: what has happened, who drives it, and what versions answer to sets that judge them."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from services.trainer.data.tables import Number
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.storage.database import Base

__all__ = [
    "EventRow",
    "FigureRow",
    "LoopLeaseRow",
    "LoopModelRow",
    "PublicationRow",
    "SetAnswersRow",
]


class EventRow(Base):
    """Something that has happened; rows are never changed or deleted."""

    __tablename__ = "events"
    __table_args__ = (Index("events_once_by_key", "model", "key", unique=True),)

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    """Without gaps: whoever finds its next number taken is not alone."""
    cycle: Mapped[int] = mapped_column(Number)
    kind: Mapped[str] = mapped_column(String(64))
    key: Mapped[str | None] = mapped_column(String(128))
    """What may be there once only."""
    time: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)


class LoopLeaseRow(Base):
    """Which process drives the loop of a model."""

    __tablename__ = "loop_leases"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    fence: Mapped[int] = mapped_column(Number)
    """Rises with every holder; one that was overtaken cannot write."""
    expire_time: Mapped[str] = mapped_column(String(32))


class SetAnswersRow(Base):
    """What a version answers to all samples of a set that is no user's."""

    __tablename__ = "set_answers"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    version: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    set_digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    best: Mapped[bytes] = mapped_column(LargeBinary)
    """Int16, little-endian, in the order of the set."""
    probabilities: Mapped[bytes] = mapped_column(LargeBinary)
    """Float16, little-endian, one row after the other."""


class PublicationRow(Base):
    """Which run, and with it which samples, a version comes from."""

    __tablename__ = "publications"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    run: Mapped[str] = mapped_column(String(128))
    snapshot: Mapped[str | None] = mapped_column(ForeignKey("snapshots.digest"))
    version: Mapped[int | None] = mapped_column(Number)
    tainted_time: Mapped[str | None] = mapped_column(String(32))
    deletion: Mapped[str | None] = mapped_column(String(64))
    """That tainted it."""


class FigureRow(Base):
    """What was measured of the traffic in one window."""

    __tablename__ = "figures"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    window: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Which predictions it is of."""
    values: Mapped[dict[str, Any]] = mapped_column(JSON)
    time: Mapped[str] = mapped_column(String(32))
