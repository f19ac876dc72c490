"""Encoders whose run goes: another run has the same one, or what it made of pictures goes with it."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from services.trainer.feedback.tables import EmbeddingRow, EncoderRow, NeighbourhoodRow
from services.trainer.runs.folder import ENCODER_FILE


def find_copies(runs: Path, gone: Collection[str]) -> dict[str, str]:
    """Return by digest the run that has an encoder, those of *gone* left out."""
    kept = [path for path in sorted(runs.glob(f"*/{ENCODER_FILE}")) if path.parent.name not in gone]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path.parent.name for path in kept}


def move_encoders(session: Session, gone: Collection[str], copies: Mapping[str, str]) -> None:
    """Let the encoders of the runs *gone* lie in another run, or forget them with all features that they have made.

    Args:
        session: Its transaction is alone.
        gone: Ids of runs.
        copies: As `find_copies` gives them.
    """
    for row in session.scalars(select(EncoderRow).where(EncoderRow.run.in_(gone))).all():
        if row.digest in copies:
            row.run = copies[row.digest]
            continue
        for table in (EmbeddingRow, NeighbourhoodRow):
            session.execute(delete(table).where(table.encoder == row.digest))
        session.delete(row)
    session.flush()
