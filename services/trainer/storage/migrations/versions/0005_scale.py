"""Indices for many pictures and predictions, and from which draw on those of a model are complete."""

import sqlalchemy as sa
from alembic import op

revision = "0005_scale"
down_revision = "0004_loop"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the column, and the indices by which a look reads no more than it needs."""
    op.add_column("loop_models", sa.Column("incomplete_draw", NUMBER, nullable=False, server_default="0"))
    op.drop_index("samples_by_model", "samples")
    op.create_index("samples_by_model", "samples", ["model", "label", "number", "observation"])
    op.create_index("observations_by_size", "observations", ["model", "size_bytes"])
    op.drop_index("predictions_by_observation", "predictions")
    op.create_index("predictions_by_observation", "predictions", ["observation", "draw"])
    op.create_index("predictions_by_version", "predictions", ["model", "version", "draw"])
    op.drop_index("predictions_by_time", "predictions")
    op.create_index("predictions_by_time", "predictions", ["model", "time", "draw"])
