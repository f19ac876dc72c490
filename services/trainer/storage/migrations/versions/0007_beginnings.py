"""Where the streams that judge versions begin, how often they began anew, and the number of the newest draw."""

import sqlalchemy as sa
from alembic import op

revision = "0007_beginnings"
down_revision = "0006_pseudonyms"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_OF_DRAWS = ("softmax_shift", "embedding_shift", "label_shift", "error_drift")
"""Kinds of figures whose windows name draws."""


def upgrade() -> None:
    """Add the columns; the newest draw is the highest that rows or figures still tell of."""
    op.add_column("loop_models", sa.Column("last_draw", NUMBER, nullable=False, server_default="0"))
    op.add_column("loop_models", sa.Column("restarts", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("loop_models", sa.Column("gate_begin_draw", NUMBER, nullable=False, server_default="0"))
    op.add_column("loop_models", sa.Column("gate_end_draw", NUMBER))
    connection = op.get_bind()
    loops = sa.table(
        "loop_models",
        *(sa.column(name, NUMBER) for name in ("incomplete_draw", "last_draw", "gate_begin_draw")),
        sa.column("model", sa.String),
    )
    predictions = sa.table("predictions", sa.column("model", sa.String), sa.column("draw", NUMBER))
    figures = sa.table(
        "figures", sa.column("model", sa.String), sa.column("kind", sa.String), sa.column("window", sa.JSON)
    )
    of_draws = sa.select(figures.c.window).where(figures.c.kind.in_(_OF_DRAWS))
    for row in connection.execute(sa.select(loops.c.model, loops.c.incomplete_draw)).all():
        newest = connection.scalar(sa.select(sa.func.max(predictions.c.draw)).where(predictions.c.model == row.model))
        windows = connection.scalars(of_draws.where(figures.c.model == row.model))
        last = max([row.incomplete_draw, newest or 0, *(window["last"] for window in windows)])
        values = {"last_draw": last, "gate_begin_draw": row.incomplete_draw}
        connection.execute(sa.update(loops).where(loops.c.model == row.model).values(values))
