"""Runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001_runs"
down_revision = None


def upgrade() -> None:
    """Make the table of runs."""
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(128), nullable=False, unique=True),
        sa.Column("client_id", sa.String(128), unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("trusted", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
        sa.Column("start_time", sa.String(32)),
        sa.Column("finish_time", sa.String(32)),
        sqlite_autoincrement=True,
    )
    op.create_index("runs_by_state", "runs", ["state", "queue", "number"])
