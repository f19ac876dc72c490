"""Models and their samples."""

import sqlalchemy as sa
from alembic import op

revision = "0002_models_and_samples"
down_revision = "0001_runs"


def upgrade() -> None:
    """Make the tables of tasks and of imported samples."""
    op.create_table(
        "models",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("preprocess_spec", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "samples",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("pixel_digest", sa.String(64), nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("orientation", sa.SmallInteger, nullable=False),
        sa.Column("client_id", sa.String(200), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
        sa.UniqueConstraint("model", "pixel_digest", name="samples_once_by_pixels"),
        sqlite_autoincrement=True,
    )
    op.create_index("samples_by_model", "samples", ["model", "label", "number"])
