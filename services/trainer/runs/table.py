"""The table of runs: what each shall do, and where it stands."""

from typing import Any

from sqlalchemy import JSON, Index, SmallInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from services.trainer.storage.database import Base


class FolderRow(Base):
    """The folder that the runs lie in: one row, written by the first service that is started."""

    __tablename__ = "runs_folder"

    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    """1."""
    id: Mapped[str] = mapped_column(String(32))
    """What stands in a file of the folder, wherever that is mounted."""
    path: Mapped[str] = mapped_column(Text)
    """Where it was then."""


class RunRow(Base):
    """One run. Only `RunStore` reads and writes these."""

    __tablename__ = "runs"
    __table_args__ = (Index("runs_by_state", "state", "queue", "number"), {"sqlite_autoincrement": True})

    number: Mapped[int] = mapped_column(primary_key=True)
    """In the order in which runs were created."""
    id: Mapped[str] = mapped_column(String(128), unique=True)
    client_id: Mapped[str | None] = mapped_column(String(128), unique=True)
    """By which its creator knows it again."""
    kind: Mapped[str] = mapped_column(String(16))
    recipe: Mapped[str] = mapped_column(Text)
    dataset: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    trusted: Mapped[bool]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(String(128))
    """Whose supervisor starts it."""
    cancel_requested: Mapped[bool]
    attempts: Mapped[int]
    """How often a process was started for it."""
    deaths: Mapped[int]
    """Of processes, in a row, without a further epoch."""
    epochs: Mapped[int]
    """Finished when the last of them died."""
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    create_time: Mapped[str] = mapped_column(String(32))
    start_time: Mapped[str | None] = mapped_column(String(32))
    """Of the first process."""
    finish_time: Mapped[str | None] = mapped_column(String(32))
