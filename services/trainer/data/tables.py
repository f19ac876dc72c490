"""Tables of tasks, of the pictures that users have sent for them, and of what is learnt from."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.trainer.storage.database import Base

Number = BigInteger().with_variant(Integer, "sqlite")
"""Of rows; SQLite counts in this type alone."""


class ModelRow(Base):
    """A task that a customer has named."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    labels: Mapped[list[str]] = mapped_column(JSON)
    preprocess_spec: Mapped[bytes] = mapped_column(LargeBinary)
    """Canonical JSON."""
    create_time: Mapped[str] = mapped_column(String(32))
    """RFC 3339, UTC."""


class SampleRow(Base):
    """One labelled image of a task; its file lies among the blobs."""

    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint("model", "pixel_digest", name="samples_once_by_pixels"),
        Index("samples_by_model", "model", "label", "number", "observation"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    """Rises in the order of arrival."""
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    content_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the blob."""
    pixel_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the upright pixels, at their own size."""
    label: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    """As stored, before the picture is turned upright."""
    format: Mapped[str] = mapped_column(String(16))
    orientation: Mapped[int] = mapped_column(SmallInteger)
    client_id: Mapped[str] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(Text)
    create_time: Mapped[str] = mapped_column(String(32))
    contributor: Mapped[str] = mapped_column(String(64), default="")
    """Who gave it; empty for the owner."""
    observation: Mapped[int | None] = mapped_column(Number)
    """The picture that it is; none for one of an earlier release."""


class ObservationRow(Base):
    """One picture that users have sent for a model, however often; its file lies among the blobs."""

    __tablename__ = "observations"
    __table_args__ = (
        UniqueConstraint("model", "pixel_digest", name="observations_once_by_pixels"),
        Index("observations_by_state", "model", "state", "number"),
        Index("observations_by_change", "changed_number"),
        Index("observations_by_change_of_model", "model", "changed_number"),
        Index("observations_by_blob", "content_digest"),
        Index("observations_to_judge", "model", "stale", "number"),
        Index("observations_by_size", "model", "size_bytes"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    """Rises in the order of arrival, and never comes again."""
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    content_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the blob."""
    pixel_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the upright pixels, at their own size."""
    size_bytes: Mapped[int] = mapped_column(Number)
    """Of the blob."""
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    """As stored, before the picture is turned upright."""
    format: Mapped[str] = mapped_column(String(16))
    orientation: Mapped[int] = mapped_column(SmallInteger)
    role: Mapped[str] = mapped_column(String(16))
    """Of the content, once and for all: TRAIN or JUDGE."""
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    """Stable word; empty where the state says all."""
    detail: Mapped[str] = mapped_column(Text)
    """Sentence with the figures."""
    label: Mapped[int | None] = mapped_column(Integer)
    """Accepted, or leading."""
    label_probability: Mapped[float] = mapped_column(Double)
    sample: Mapped[int | None] = mapped_column(Number)
    """Number of the sample that it is."""
    changed_number: Mapped[int] = mapped_column(Number)
    """Rises with every change of the row or of what was said of it, over all models."""
    stale: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether something was said or found since its state was judged."""
    create_time: Mapped[str] = mapped_column(String(32))


def total_bytes() -> ColumnElement[int]:
    """Return the sum of the sizes of pictures, NULL for none; left to itself, PostgreSQL makes a decimal of it."""
    return func.sum(ObservationRow.size_bytes).cast(Number)


class PredictionRow(Base):
    """One answer that was captured."""

    __tablename__ = "predictions"
    __table_args__ = (
        Index("predictions_by_observation", "observation", "draw"),
        UniqueConstraint("model", "draw", name="predictions_in_order_of_draws"),
        Index("predictions_by_version", "model", "version", "draw"),
        Index("predictions_by_time", "model", "time", "draw"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    version: Mapped[int] = mapped_column(Number)
    generation: Mapped[int] = mapped_column(Number)
    """Of the traffic that chose the version."""
    preprocess_digest: Mapped[str] = mapped_column(String(80))
    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"))
    contributor: Mapped[str] = mapped_column(String(64))
    """Empty for a caller from elsewhere without a key."""
    strategy: Mapped[str] = mapped_column(String(16))
    """RANDOM, LOW_CONFIDENCE or RARE_CLASS."""
    probability: Mapped[float] = mapped_column(Double)
    """With which any prediction was drawn at random at that moment."""
    draw: Mapped[int | None] = mapped_column(Number)
    """Rises by one among the random ones of a model, in the order of arrival."""
    labels: Mapped[list[list[object]]] = mapped_column(JSON)
    """Pairs of label and probability, by falling probability."""
    time: Mapped[str] = mapped_column(String(32))


class VoteRow(Base):
    """The last word of one contributor on one picture."""

    __tablename__ = "votes"
    __table_args__ = (UniqueConstraint("observation", "contributor", name="votes_once_by_contributor"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"))
    prediction: Mapped[str | None] = mapped_column(String(32))
    contributor: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[str] = mapped_column(String(16))
    """LABEL, PROPOSAL, WRONG, UNDECIDABLE or REJECT."""
    label: Mapped[int | None] = mapped_column(Integer)
    """With LABEL: its index in the model."""
    proposal: Mapped[str] = mapped_column(String(200))
    """With PROPOSAL: a label that the model does not know."""
    agreed: Mapped[bool | None] = mapped_column(Boolean)
    """Whether it was the label that was answered; none where no answer is known."""
    trusted: Mapped[bool] = mapped_column(Boolean)
    """Whether the contributor was, or is since."""
    comment: Mapped[str] = mapped_column(Text)
    time: Mapped[str] = mapped_column(String(32))


class FindingRow(Base):
    """Something that speaks against a picture or what was said of it."""

    __tablename__ = "findings"

    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    """NEIGHBOURS_DISAGREE, NEAR_COPY, LIKELY_WRONG, CONTRIBUTOR_HARMS or UNREADABLE."""
    level: Mapped[float] = mapped_column(Double)
    detail: Mapped[str] = mapped_column(Text)
    time: Mapped[str] = mapped_column(String(32))


class SnapshotRow(Base):
    """Samples that a run learns from and is measured on, pinned for ever."""

    __tablename__ = "snapshots"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 over contents, labels and parts."""
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    base: Mapped[str] = mapped_column(Text)
    """Set that samples of the users are added to; empty for none."""
    base_digest: Mapped[str] = mapped_column(String(80))
    base_drawn: Mapped[list[int]] = mapped_column(JSON)
    """Positions of the base's training samples that are replayed."""
    counts: Mapped[dict[str, int]] = mapped_column(JSON)
    """Samples of each part."""
    create_time: Mapped[str] = mapped_column(String(32))


class SnapshotSampleRow(Base):
    """One sample of a snapshot that users have given."""

    __tablename__ = "snapshot_samples"
    __table_args__ = (Index("snapshot_samples_by_observation", "observation"),)

    snapshot: Mapped[str] = mapped_column(ForeignKey("snapshots.digest"), primary_key=True)
    observation: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    sample: Mapped[int] = mapped_column(Number)
    label: Mapped[int] = mapped_column(Integer)
    part: Mapped[str] = mapped_column(String(16))
    """`train` or `validation`."""
