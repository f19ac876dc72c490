"""Features of users' pictures."""

from collections.abc import Sequence

from sqlalchemy import select

from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.stored import StoredPictures, find_observations
from services.trainer.data.features import pack
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.tables import EmbeddingRow
from services.trainer.storage.database import Database


def embed_observations(
    database: Database,
    pictures: StoredPictures,
    encoder: OpenedEncoder,
    numbers: Sequence[int],
) -> dict[int, str]:
    """Embed pictures and keep their features; those that were deleted meanwhile are passed over.

    Args:
        database: Has the rows.
        pictures: Has the files.
        encoder: Of the model.
        numbers: Of the pictures.

    Returns:
        By number, why a picture cannot be read.

    Raises:
        InvalidInput: The encoder takes pictures of another size than its run says.
    """
    with database.read() as session:
        rows = find_observations(session, numbers)
    readable, pixels, problems = pictures.read(rows, encoder.spec)
    features = encoder.embed(pixels)
    with database.begin(alone=True) as session:
        there = set(
            session.scalars(
                select(ObservationRow.number).where(ObservationRow.number.in_([r.number for r in readable]))
            )
        )
        for row, vector in zip(readable, features, strict=True):
            if row.number in there:
                session.merge(EmbeddingRow(encoder=encoder.digest, observation=row.number, vector=pack(vector)))
    return problems
