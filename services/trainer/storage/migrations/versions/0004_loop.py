"""What users send and say, and the loop that learns from it."""

import sqlalchemy as sa
from alembic import op

revision = "0004_loop"
down_revision = "0003_runs_folder"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables of pictures, votes, snapshots and events; samples learn who gave them."""
    op.add_column("samples", sa.Column("contributor", sa.String(64), nullable=False, server_default=""))
    op.add_column("samples", sa.Column("observation", NUMBER))
    op.create_table(
        "contributors",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("trusted", sa.Boolean, nullable=False),
        sa.Column("blocked", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("contributor", sa.String(64), sa.ForeignKey("contributors.name"), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
        sa.Column("revoke_time", sa.String(32), nullable=True),
    )
    op.create_table(
        "loop_models",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "observations",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("pixel_digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", NUMBER, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("orientation", sa.SmallInteger, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("label", sa.Integer, nullable=True),
        sa.Column("label_probability", sa.Double, nullable=False),
        sa.Column("sample", NUMBER, nullable=True),
        sa.Column("changed_number", NUMBER, nullable=False),
        sa.Column("stale", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
        sa.UniqueConstraint("model", "pixel_digest", name="observations_once_by_pixels"),
        sqlite_autoincrement=True,
    )
    op.create_index("observations_by_blob", "observations", ["content_digest"])
    op.create_index("observations_by_change", "observations", ["changed_number"])
    op.create_index("observations_by_change_of_model", "observations", ["model", "changed_number"])
    op.create_index("observations_by_state", "observations", ["model", "state", "number"])
    op.create_index("observations_to_judge", "observations", ["model", "stale", "number"])
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("generation", NUMBER, nullable=False),
        sa.Column("preprocess_digest", sa.String(80), nullable=False),
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), nullable=False),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("strategy", sa.String(16), nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("draw", NUMBER, nullable=True),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.UniqueConstraint("model", "draw", name="predictions_in_order_of_draws"),
    )
    op.create_index("predictions_by_observation", "predictions", ["observation"])
    op.create_index("predictions_by_time", "predictions", ["model", "time"])
    op.create_table(
        "votes",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), nullable=False),
        sa.Column("prediction", sa.String(32), nullable=True),
        sa.Column("contributor", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("label", sa.Integer, nullable=True),
        sa.Column("proposal", sa.String(200), nullable=False),
        sa.Column("agreed", sa.Boolean, nullable=True),
        sa.Column("trusted", sa.Boolean, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.UniqueConstraint("observation", "contributor", name="votes_once_by_contributor"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "capture_counts",
        sa.Column("gateway", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("version", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("answered", NUMBER, nullable=False),
        sa.Column("captured", sa.JSON, nullable=False),
        sa.Column("dropped", sa.JSON, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_table(
        "snapshots",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("base_digest", sa.String(80), nullable=False),
        sa.Column("base_drawn", sa.JSON, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "snapshot_samples",
        sa.Column("snapshot", sa.String(64), sa.ForeignKey("snapshots.digest"), primary_key=True),
        sa.Column("observation", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("sample", NUMBER, nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
    )
    op.create_index("snapshot_samples_by_observation", "snapshot_samples", ["observation"])
    op.create_table(
        "encoders",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("features", sa.Integer, nullable=False),
        sa.Column("create_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "embeddings",
        sa.Column("encoder", sa.String(64), primary_key=True),
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), primary_key=True),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("level", sa.Double, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_table(
        "neighbourhoods",
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), primary_key=True),
        sa.Column("encoder", sa.String(64), nullable=False),
        sa.Column("lifts", sa.JSON, nullable=False),
        sa.Column("members", sa.JSON, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("number", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("cycle", NUMBER, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("key", sa.String(128), nullable=True),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
    )
    op.create_index("events_once_by_key", "events", ["model", "key"], unique=True)
    op.create_table(
        "loop_leases",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("fence", NUMBER, nullable=False),
        sa.Column("expire_time", sa.String(32), nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("version", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("observation", NUMBER, sa.ForeignKey("observations.number"), primary_key=True),
        sa.Column("best", sa.Integer, nullable=False),
        sa.Column("best_probability", sa.Double, nullable=False),
        sa.Column("probabilities", sa.LargeBinary, nullable=False),
        sa.Column("learnt", sa.Boolean, nullable=False),
    )
    op.create_table(
        "set_answers",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("version", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("set_digest", sa.String(80), primary_key=True),
        sa.Column("best", sa.LargeBinary, nullable=False),
        sa.Column("probabilities", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "publications",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("snapshot", sa.String(64), sa.ForeignKey("snapshots.digest"), nullable=True),
        sa.Column("version", NUMBER, nullable=True),
        sa.Column("tainted_time", sa.String(32), nullable=True),
        sa.Column("deletion", sa.String(64), nullable=True),
    )
    op.create_table(
        "figures",
        sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("number", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("window", sa.JSON, nullable=False),
        sa.Column("values", sa.JSON, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_table(
        "deletions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("deadline", sa.String(32), nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
    )
