"""Tables of tasks and of the samples imported for them."""

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.trainer.storage.database import Base


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
        Index("samples_by_model", "model", "label", "number"),
    )

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
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
