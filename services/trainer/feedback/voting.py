"""Takes in what users say of predictions, one last word of each contributor for each picture."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotFound, Overloaded
from services.common.identity import Caller
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import MAX_LABEL_LENGTH, Model, check_visible, find_model
from services.trainer.data.observing import Content, VoteKind, Word, observe, store_picture, vote
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.capturing import free_bytes, shortage, stored_bytes
from services.trainer.feedback.contributors import is_trusted
from services.trainer.feedback.observations import ensure_loop_model, find_prediction
from services.trainer.feedback.pace import VotePace
from services.trainer.feedback.policy import PolicyOf
from services.trainer.feedback.roles import role_of
from services.trainer.feedback.sifting import Sifter
from services.trainer.storage.database import Database
from services.trainer.storage.texts import check_storable

MAX_COMMENT = 1000
"""Characters; the contract states it."""


@dataclass(frozen=True)
class NewFeedback:
    """What somebody says of a prediction."""

    prediction_id: str = ""
    """Empty where the picture is given with its model, or by its number."""
    model: str = ""
    label: str = ""
    correct: bool | None = None
    """Whether the answer was right, where no label is given."""
    comment: str = ""
    image: bytes = b""
    observation: int = 0
    """Number of the picture, where an export names it."""


@dataclass(frozen=True)
class FeedbackResult:
    """What became of it."""

    observation: int
    state: str
    reason: str
    new: bool
    model: str


class Voting:
    """Takes feedback in; any number of threads may.

    Args:
        database: Migrated.
        blobs: Folder of pictures.
        policy_of: Says how much one may say at a time, and which contents judge.
        sifter: Judges the picture at once.
        pace: Counts what each contributor says.
    """

    def __init__(
        self, database: Database, blobs: Path, policy_of: PolicyOf, sifter: Sifter, pace: VotePace | None = None
    ) -> None:
        self._database = database
        self._blobs = Blobs(blobs)
        self._policy_of = policy_of
        self._sifter = sifter
        self._pace = pace or VotePace()

    def model_of(self, feedback: NewFeedback) -> str:
        """Return the model whose answer *feedback* is about.

        Raises:
            NotFound: The prediction was not captured, and no picture came; or there is no such picture.
            InvalidInput: Neither a prediction nor a picture is named.
        """
        with self._database.read() as session:
            prediction = find_prediction(session, feedback.prediction_id)
            if prediction is not None:
                return prediction.model
            picture = session.get(ObservationRow, feedback.observation) if feedback.observation else None
            if picture is not None:
                return picture.model
        if feedback.image and feedback.model:
            return feedback.model
        if feedback.prediction_id or feedback.observation:
            raise _not_found(feedback)
        raise InvalidInput(
            "the feedback names neither prediction_id nor image and model; send the id that came with the answer",
            field="prediction_id",
        )

    def send(self, caller: Caller, feedback: NewFeedback, began: datetime | None = None) -> FeedbackResult:
        """Take in one word, and judge its picture; the same word again changes nothing.

        Args:
            caller: Who says it.
            feedback: What they say.
            began: When the call did that it came with; None is now.

        Raises:
            InvalidInput: There is neither label nor correct, or a value is malformed.
            NotFound: The prediction was not captured and no image came, or there is no such model.
            NotAllowed: The contributor is blocked, or was deleted since the call began.
            Overloaded: The contributor says too much at a time, the disk is full, or the policy has no room for the
                picture that came along.
            NotReady: The database does not answer; send it again.
        """
        began = began or datetime.now(UTC)
        _check(feedback)
        name = self.model_of(feedback)
        task = find_model(self._database, name)
        with self._database.read() as session:
            trusted = is_trusted(session, caller, began)
        if not trusted:
            self._pace.take(caller.contributor, self._policy_of(name).trust.votes_per_minute)
        content = None
        with self._database.read() as session:
            if _known(session, feedback) is None:
                if not feedback.image:  # it was there for `model_of`
                    raise _not_found(feedback)
                self._check_room(session, name)
                content = store_picture(self._blobs, feedback.image)
        with self._database.begin(alone=True) as session:
            trusted = is_trusted(session, caller, began)  # again, now that nobody else writes
            row, prediction = self._find(session, task, feedback, content)
            new = vote(session, row, _word(task, feedback, prediction, caller.contributor, trusted))
        if new:
            self._sifter.sift(name)
        with self._database.read() as session:
            row = session.get(ObservationRow, row.number) or row  # forgotten meanwhile: as it was with the word
            return FeedbackResult(row.number, row.state, row.reason, new, name)

    def _check_room(self, session: Session, model: str) -> None:
        policy = self._policy_of(model).capture
        free = free_bytes(self._blobs.folder)
        stored = stored_bytes(session, model)
        lacking = shortage(policy, stored, free)
        if lacking == "DISK_FULL":
            raise Overloaded(
                f"the trainer's disk has {free:,} bytes left and must keep {policy.least_free_bytes:,}, so no picture "
                "is taken with feedback; make room, or lower capture.least_free_bytes in the policy",
                reason=lacking,
            )
        if lacking:
            raise Overloaded(
                f"the pictures of model {model!r} take {stored:,} bytes and may take "
                f"{policy.max_bytes:,}, so none is taken with feedback; raise capture.max_bytes in the policy, or "
                "lower retention.days",
                reason=lacking,
            )

    def _find(
        self, session: Session, task: Model, feedback: NewFeedback, content: Content | None
    ) -> tuple[ObservationRow, PredictionRow | None]:
        """Return the row of the picture, and of the prediction where it was captured."""
        known = _known(session, feedback)
        if known is not None:
            return known
        if content is None or not self._blobs.has(content.content_digest):  # forgotten meanwhile
            if not feedback.image:
                raise _not_found(feedback)
            content = store_picture(self._blobs, feedback.image)
        salt, share = ensure_loop_model(session, task.name).salt, self._policy_of(task.name).judging.share
        rows = observe(session, task.name, [content], partial(role_of, salt=salt, judge_share=share))
        return rows[content.pixel_digest], None


def _known(session: Session, feedback: NewFeedback) -> tuple[ObservationRow, PredictionRow | None] | None:
    """Return the rows of what was captured; None where the picture must come with the feedback."""
    prediction = find_prediction(session, feedback.prediction_id)
    if prediction is not None:
        return session.get_one(ObservationRow, prediction.observation), prediction
    row = session.get(ObservationRow, feedback.observation) if feedback.observation else None
    return None if row is None else (row, None)


def _not_found(feedback: NewFeedback) -> NotFound:
    named = feedback.prediction_id[:50] or f"of picture {feedback.observation}"
    return NotFound(
        f"prediction {named!r} was not captured or is forgotten; send image and model with the label, or "
        "try again in some seconds where it has just been made",
        reason="PREDICTION_NOT_FOUND",
        field="prediction_id",
    )


def _check(feedback: NewFeedback) -> None:
    if bool(feedback.label.strip()) == (feedback.correct is not None):
        raise InvalidInput(
            f"the feedback has label {feedback.label[:50]!r} and correct {feedback.correct}; give one of them",
            field="verdict",
        )
    if len(feedback.label) > MAX_LABEL_LENGTH:
        raise InvalidInput(
            f"label has {len(feedback.label)} characters; the limit is {MAX_LABEL_LENGTH}; shorten it", field="label"
        )
    if len(feedback.comment) > MAX_COMMENT:
        raise InvalidInput(
            f"comment has {len(feedback.comment):,} characters; the limit is {MAX_COMMENT:,}; shorten it",
            field="comment",
        )
    check_storable(feedback.comment, "comment")


def _word(
    task: Model, feedback: NewFeedback, prediction: PredictionRow | None, contributor: str, trusted: bool
) -> Word:
    answered = str(prediction.labels[0][0]) if prediction is not None else ""
    if feedback.correct is not None and not answered:
        raise InvalidInput(
            "correct says nothing of a picture whose answer was not captured; send the label that it should have",
            reason="ANSWER_UNKNOWN",
            field="verdict",
        )
    label = answered if feedback.correct else _as_known(task, feedback.label)
    known = label in task.labels
    if not known:
        check_visible(label)
    kind = VoteKind.WRONG if not label else VoteKind.LABEL if known else VoteKind.PROPOSAL
    return Word(
        contributor,
        kind,
        trusted,
        task.label_number(label) if known else None,
        "" if known else label,
        feedback.comment,
        prediction.id if prediction is not None else None,
        label == answered if answered else None,
    )


def _as_known(task: Model, label: str) -> str:
    """Return the label of the model that differs from *label* in its case alone, else *label* without blanks around."""
    label = label.strip()
    alike = [each for each in task.labels if each.casefold() == label.casefold()]
    return label if label in task.labels or len(alike) != 1 else alike[0]
