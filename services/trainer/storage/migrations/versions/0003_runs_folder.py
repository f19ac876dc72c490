"""Which folder the runs of the database lie in."""

import sqlalchemy as sa
from alembic import op

revision = "0003_runs_folder"
down_revision = "0002_models_and_samples"


def upgrade() -> None:
    """Make the table of the one folder."""
    op.create_table(
        "runs_folder",
        sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
    )
