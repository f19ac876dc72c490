"""Tables of who gives feedback, and of what is known of the pictures beside what was said."""

from typing import Any

from sqlalchemy import JSON, Boolean, Double, ForeignKey, Integer, LargeBinary, SmallInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from services.trainer.data.tables import FindingRow as FindingRow  # lies below, with all that a snapshot asks for
from services.trainer.data.tables import Number
from services.trainer.storage.database import Base


class ContributorRow(Base):
    """Somebody whose word is known again."""

    __tablename__ = "contributors"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    trusted: Mapped[bool] = mapped_column(Boolean)
    """Whether the word decides by itself."""
    blocked: Mapped[bool] = mapped_column(Boolean)
    """Whether it counts for nothing."""
    create_time: Mapped[str] = mapped_column(String(32))


class KeyRow(Base):
    """A key of a contributor; its secret is kept by nobody."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the secret, which has 256 random bits: nothing is to be guessed."""
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.name"))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    create_time: Mapped[str] = mapped_column(String(32))
    revoke_time: Mapped[str | None] = mapped_column(String(32))


class PseudonymKeyRow(Base):
    """What makes pseudonyms of names: one row, drawn when the table is made."""

    __tablename__ = "pseudonym_keys"

    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    """1."""
    key: Mapped[str] = mapped_column(String(64))
    """256 random bits, hexadecimal."""


class CaptureCountRow(Base):
    """What a process of the gateway has answered, captured and dropped of one version."""

    __tablename__ = "capture_counts"

    gateway: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    answered: Mapped[int] = mapped_column(Number)
    captured: Mapped[dict[str, int]] = mapped_column(JSON)
    """By strategy."""
    dropped: Mapped[dict[str, int]] = mapped_column(JSON)
    """By reason."""
    time: Mapped[str] = mapped_column(String(32))


class EncoderRow(Base):
    """A graph that makes features of pictures: a model without its last layer."""

    __tablename__ = "encoders"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the graph; models whose last layers alone differ share it."""
    run: Mapped[str] = mapped_column(String(128))
    """In whose folder the graph lies."""
    features: Mapped[int] = mapped_column(Integer)
    create_time: Mapped[str] = mapped_column(String(32))


class EmbeddingRow(Base):
    """The features of one picture."""

    __tablename__ = "embeddings"

    encoder: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Digest."""
    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    """Float16, little-endian."""


class NeighbourhoodRow(Base):
    """What lies next to a picture among the base set and the accepted samples."""

    __tablename__ = "neighbourhoods"

    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"), primary_key=True)
    encoder: Mapped[str] = mapped_column(String(64))
    """By whose features."""
    lifts: Mapped[dict[str, float]] = mapped_column(JSON)
    """By the number of a label: its share among the neighbours, of its share among all; 0 where it is not there."""
    members: Mapped[dict[str, int]] = mapped_column(JSON)
    """By the number of a label: how many there are of it; of each label that was voted for or that neighbours have."""
    time: Mapped[str] = mapped_column(String(32))


class LoopModelRow(Base):
    """A model whose traffic is collected."""

    __tablename__ = "loop_models"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    salt: Mapped[str] = mapped_column(String(32))
    """Gives every content its role."""
    base: Mapped[str] = mapped_column(Text)
    """Set that users' samples are added to; empty for none."""
    create_time: Mapped[str] = mapped_column(String(32))
    incomplete_draw: Mapped[int] = mapped_column(Number, default=0)
    """Judged draws count after it: of those up to it, pictures were forgotten, and what is left was chosen."""
    last_draw: Mapped[int] = mapped_column(Number, default=0)
    """Number of the newest draw that there ever was, whatever became of it: none is given out twice."""
    restarts: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    """By version: how often `incomplete_draw` has passed draws that it had answered."""
    gate_begin_draw: Mapped[int] = mapped_column(Number, default=0)
    """Contents to judge candidates by count after it; set when a gate begins, it rests until the next one does."""
    gate_end_draw: Mapped[int | None] = mapped_column(Number)
    """Last draw that they count of, where there was no room to hold later ones for the gate that began last."""


class AnswerRow(Base):
    """What a version answers to one picture of the users."""

    __tablename__ = "answers"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    version: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=False)
    observation: Mapped[int] = mapped_column(ForeignKey("observations.number"), primary_key=True)
    best: Mapped[int] = mapped_column(Integer)
    best_probability: Mapped[float] = mapped_column(Double)
    probabilities: Mapped[bytes] = mapped_column(LargeBinary)
    """Float16, little-endian."""
    learnt: Mapped[bool] = mapped_column(default=False)
    """Whether the version has learnt these pixels, as far as the run that made it says: it is not judged by them."""


class DeletionRow(Base):
    """Something that is to be forgotten."""

    __tablename__ = "deletions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """SAMPLE or CONTRIBUTOR."""
    subject: Mapped[str] = mapped_column(String(64))
    """Pseudonym of the contributor, or of the picture's number: what is forgotten is not named."""
    state: Mapped[str] = mapped_column(String(16))
    deadline: Mapped[str] = mapped_column(String(32))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Counts of what was erased, and what it had tainted."""
