"""The queue of reviewers: which pictures wait for them, and what they decide."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotAllowed, NotFound
from services.common.identity import Caller
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import MAX_LABEL_LENGTH, Model, check_visible, find_model
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.blinding import hides_words
from services.trainer.feedback.contributors import standing_of
from services.trainer.feedback.queue import ObservationFilter, Order, count_waiting, filtered, ordered
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.views import ObservationView, Versions, view
from services.trainer.storage.database import Database

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200
"""Pictures on one page; the contract states both."""

_TOKEN = re.compile(r"(?P<key>-?[0-9]{1,17}(\.[0-9]{1,24})?(e[+-]?[0-9]{1,3})?):(?P<number>[0-9]{1,18})")


class Decision(StrEnum):
    """What a reviewer says."""

    LABEL = "LABEL"
    UNDECIDABLE = "UNDECIDABLE"
    REJECT = "REJECT"
    RELEASE = "RELEASE"
    """It has its leading label, which the reviewer must be able to see."""


@dataclass(frozen=True)
class Page:
    """Some pictures of a list."""

    observations: list[ObservationView]
    next_token: str
    """Empty on the last page."""
    waiting: int
    """How many pictures of the model wait for a reviewer."""


class Reviewing:
    """Lists pictures, and takes in what reviewers decide; any number of threads may.

    Args:
        database: Migrated.
        blobs: Folder of pictures.
        sifter: Judges what was decided at once.
        versions_of: Gives champion and candidate of a model while a candidate is judged, else None.
    """

    def __init__(
        self,
        database: Database,
        blobs: Path,
        sifter: Sifter,
        versions_of: Callable[[str], Versions | None] = lambda _: None,
    ) -> None:
        self._database = database
        self._blobs = Blobs(blobs)
        self._sifter = sifter
        self._versions_of = versions_of

    def list(
        self,
        model: str,
        wanted: ObservationFilter,
        order: Order = Order.NEWEST,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page:
        """Return a page of pictures, without what reviewers may not see before they decide.

        Args:
            model: Name of their model.
            wanted: Which ones.
            order: In what order.
            page_size: At most this many, up to `MAX_PAGE_SIZE`; 0 is `PAGE_SIZE`.
            page_token: What the last page gave; empty is the first.

        Raises:
            NotFound: The model is unknown.
            InvalidInput: The label is not one of the model's, or the token or the size is malformed.
        """
        task = find_model(self._database, model)
        if page_size < 0:
            raise InvalidInput(
                f"page_size is {page_size}; give 1 to {MAX_PAGE_SIZE}, or 0 for {PAGE_SIZE}", field="page_size"
            )
        match = _TOKEN.fullmatch(page_token)
        if page_token and match is None:
            raise InvalidInput(
                f"page_token {page_token[:50]!r} is not one; give next_page_token of the page before",
                field="page_token",
            )
        size = min(page_size or PAGE_SIZE, MAX_PAGE_SIZE)
        versions = self._versions_of(model)
        key, statement = ordered(task, order, versions)
        statement = filtered(task, statement, wanted).order_by(key, ObservationRow.number).limit(size + 1)
        if match is not None:
            last, number = float(match["key"]), int(match["number"])
            statement = statement.where(or_(key > last, and_(key == last, ObservationRow.number > number)))
        with self._database.read() as session:
            found = session.execute(statement).all()
            page = found[:size]
            token = f"{float(page[-1][1])!r}:{page[-1][0].number}" if len(found) > size else ""
            views = view(session, task, [row for row, _ in page], versions)
            return Page([each.for_reviewers() for each in views], token, count_waiting(session, model))

    def read(self, number: int) -> ObservationView:
        """Return one picture, without what reviewers may not see before they decide.

        Raises:
            NotFound: There is none of that number, or it was deleted.
        """
        with self._database.read() as session:
            row = _find(session, number)
            task = find_model(self._database, row.model)
            return view(session, task, [row], self._versions_of(row.model))[0].for_reviewers()

    def image(self, number: int) -> tuple[bytes, str, int]:
        """Return the file of a picture, its format, and how it must be turned to be upright, 1 to 8 as in EXIF.

        Raises:
            NotFound: There is none of that number, or it was deleted, or its file is damaged.
        """
        with self._database.read() as session:
            row = _find(session, number)
        image = self._blobs.read(row.content_digest)
        if image is not None:
            return image, row.format, row.orientation
        if not self._blobs.has(row.content_digest):
            raise _unknown(number)
        raise NotFound(
            f"the file of picture {number} is damaged: its content is not the one that was stored; restore "
            f"{row.content_digest} in the trainer's blobs from a backup, or delete the picture",
            reason="PICTURE_DAMAGED",
            field="id",
        )

    def review(self, caller: Caller, number: int, decision: Decision, label: str = "") -> ObservationView:
        """Decide on a picture; the same decision again changes nothing.

        Args:
            caller: Who decides; must be trusted.
            number: Of the picture.
            decision: What it is.
            label: With LABEL: one of the model's, or one to propose.

        Raises:
            NotAllowed: The caller is not trusted, or blocked.
            NotFound: There is no such picture, or it was deleted.
            InvalidInput: The label is malformed, or there is none to release the picture with that may be seen.
        """
        with self._database.begin(alone=True) as session:
            standing = standing_of(session, caller)
            if standing.blocked or not standing.trusted:
                raise NotAllowed(
                    f"{caller.contributor or 'the caller'} is not trusted to decide on picture {number}; send it as "
                    "feedback, or ask the owner for a key that is trusted",
                    reason="NOT_TRUSTED",
                )
            row = _find(session, number)
            task = find_model(self._database, row.model)
            if decision is Decision.RELEASE:
                _check_release(session, row)
            vote(session, row, _word(task, row, caller.contributor, decision, label.strip()))
        self._sifter.sift(task.name)
        return self.read(number)


def _find(session: Session, number: int) -> ObservationRow:
    row = session.get(ObservationRow, number)
    if row is None:
        raise _unknown(number)
    return row


def _unknown(number: int) -> NotFound:
    return NotFound(
        f"picture {number} is unknown or was deleted; name one that ListObservations or `aimass review` gives",
        reason="OBSERVATION_NOT_FOUND",
        field="id",
    )


def _check_release(session: Session, row: ObservationRow) -> None:
    """Refuse to decide by what others say where there is nothing, or where that must not decide."""
    if session.scalar(select(hides_words()).where(ObservationRow.number == row.number)):
        raise InvalidInput(
            f"picture {row.number} measures the model, so that what others say of it must not decide; decide on it "
            "with a label",
            reason="BLIND",
            field="release",
        )
    if row.label is None:
        raise InvalidInput(
            f"picture {row.number} has no leading label that the model knows; decide on it with a label",
            reason="NO_LABEL",
            field="release",
        )


def _word(task: Model, row: ObservationRow, contributor: str, decision: Decision, label: str) -> Word:
    if decision is Decision.UNDECIDABLE:
        return Word(contributor, VoteKind.UNDECIDABLE, trusted=True)
    if decision is Decision.REJECT:
        return Word(contributor, VoteKind.REJECT, trusted=True)
    if decision is Decision.RELEASE:
        return Word(contributor, VoteKind.LABEL, trusted=True, label=row.label)
    if not 1 <= len(label) <= MAX_LABEL_LENGTH:
        raise InvalidInput(f"label has {len(label)} characters; give 1 to {MAX_LABEL_LENGTH}", field="label")
    if label in task.labels:
        return Word(contributor, VoteKind.LABEL, trusted=True, label=task.label_number(label))
    check_visible(label)
    return Word(contributor, VoteKind.PROPOSAL, trusted=True, proposal=label)
