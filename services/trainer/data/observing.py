"""Pictures that users send, one row for each content of a model: what importing and feedback have in common."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.trainer.clock import now
from services.trainer.data.blobs import Blobs
from services.trainer.data.pictures import read_picture
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow

NEAR_COPY = "NEAR_COPY"
"""Kind of the finding that a picture to learn from shows nearly what candidates are judged on."""


class Role(StrEnum):
    """What a content may be used for."""

    TRAIN = "TRAIN"
    JUDGE = "JUDGE"


class State(StrEnum):
    """How far a picture has come on its way to be a sample."""

    CAPTURED = "CAPTURED"
    PENDING = "PENDING"
    ACCEPTED = "ACCEPTED"
    QUARANTINED = "QUARANTINED"
    PROPOSED = "PROPOSED"
    REJECTED = "REJECTED"


class VoteKind(StrEnum):
    """What a contributor says of a picture."""

    LABEL = "LABEL"
    """It is of a class that the model knows."""
    PROPOSAL = "PROPOSAL"
    """It is of another class."""
    WRONG = "WRONG"
    """It is not what was answered."""
    UNDECIDABLE = "UNDECIDABLE"
    """Nobody can tell."""
    REJECT = "REJECT"
    """It shall not be used."""


@dataclass(frozen=True)
class Content:
    """One picture as it is stored."""

    content_digest: str
    pixel_digest: str
    size_bytes: int
    width: int
    height: int
    format: str
    orientation: int


@dataclass(frozen=True)
class Word:
    """What somebody says of a picture."""

    contributor: str
    verdict: VoteKind
    trusted: bool = False
    label: int | None = None
    proposal: str = ""
    comment: str = ""
    prediction: str | None = None
    agreed: bool | None = None


def store_picture(blobs: Blobs, image: bytes) -> Content:
    """Take the metadata out of a file, store it, and return what it holds; a blob without a row costs only room.

    Raises:
        InvalidInput: It is no image, damaged, larger than the limits, or of a kind that is not read.
        Overloaded: The disk has no room.
    """
    picture = read_picture(image)
    data, format_name = picture.without_metadata()
    return Content(
        blobs.put(data),
        picture.pixel_digest,
        len(data),
        picture.image.width,
        picture.image.height,
        format_name,
        picture.orientation,
    )


def observe(
    session: Session, model: str, contents: Sequence[Content], role_of: Callable[[str], Role]
) -> dict[str, ObservationRow]:
    """Return the rows of *contents* by their pixel digests; those that are new are made, in their order.

    The session's transaction must be alone. A content that is a sample already was perhaps learnt from: it stays one to
    learn from, whatever *role_of* says of its pixel digest.
    """
    wanted = {each.pixel_digest: each for each in reversed(contents)}
    rows = observed(session, model, contents)
    new = [wanted[digest] for digest in dict.fromkeys(each.pixel_digest for each in contents) if digest not in rows]
    samples = _unobserved_samples(session, model, [each.pixel_digest for each in new])
    change = next_change(session) if new else 0
    for offset, content in enumerate(new):
        sample = samples.get(content.pixel_digest)
        rows[content.pixel_digest] = ObservationRow(
            model=model,
            **asdict(content),
            role=Role.TRAIN if sample else role_of(content.pixel_digest),
            state=State.ACCEPTED if sample else State.CAPTURED,
            reason="",
            detail="",
            label=sample.label if sample else None,
            label_probability=1.0 if sample else 0.0,
            sample=sample.number if sample else None,
            changed_number=change + offset,
            stale=False,
            create_time=now(),
        )
        session.add(rows[content.pixel_digest])
    session.flush()
    for digest, sample in samples.items():  # the owner's word, from before there were words
        sample.observation = rows[digest].number
        vote(session, rows[digest], Word(sample.contributor, VoteKind.LABEL, trusted=True, label=sample.label))
    return rows


def observed(session: Session, model: str, contents: Sequence[Content]) -> dict[str, ObservationRow]:
    """Return the rows that there are of *contents*, by their pixel digests."""
    statement = select(ObservationRow).where(
        ObservationRow.model == model, ObservationRow.pixel_digest.in_([each.pixel_digest for each in contents])
    )
    return {row.pixel_digest: row for row in session.scalars(statement)}


def vote(session: Session, row: ObservationRow, word: Word) -> bool:
    """Let *word* be the last one of its contributor on a picture; return whether it says anything new.

    The session's transaction must be alone. The picture is to be judged again.
    """
    statement = select(VoteRow).where(VoteRow.observation == row.number, VoteRow.contributor == word.contributor)
    values = asdict(word)
    found = session.scalar(statement)
    if found is None:
        session.add(VoteRow(observation=row.number, **values, time=now()))
    elif all(getattr(found, name) == value for name, value in values.items() if name not in ("prediction", "agreed")):
        return False
    else:
        for name, value in values.items():
            setattr(found, name, value)
        found.time = now()
    session.flush()
    mark_changed(session, [row.number])
    session.refresh(row, ["changed_number", "stale"])
    return True


def next_change(session: Session) -> int:
    """Return the number of the next change; the session's transaction must be alone."""
    return (session.scalar(select(func.max(ObservationRow.changed_number))) or 0) + 1


def mark_changed(session: Session, observations: Collection[int]) -> None:
    """Say that something was said or found of pictures, so that they are judged again.

    The session's transaction must be alone.
    """
    change = next_change(session)
    changes = [
        {"number": number, "changed_number": change + offset, "stale": True}
        for offset, number in enumerate(sorted(observations))
    ]
    if changes:
        session.execute(update(ObservationRow), changes)


def _unobserved_samples(session: Session, model: str, digests: Sequence[str]) -> Mapping[str, SampleRow]:
    """Return the samples of an earlier release with these pixels."""
    statement = select(SampleRow).where(
        SampleRow.model == model, SampleRow.pixel_digest.in_(digests), SampleRow.observation.is_(None)
    )
    return {row.pixel_digest: row for row in session.scalars(statement)}
