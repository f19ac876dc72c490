"""A customer's own labelled images: taken in, kept, and read back."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Select, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput
from services.trainer.clock import now
from services.trainer.data.blobs import Blobs
from services.trainer.data.files import PictureFile
from services.trainer.data.models import Model, find_model
from services.trainer.data.observing import Content, Role, State, VoteKind, Word, observe, observed, store_picture, vote
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow
from services.trainer.sets import ModelSamples
from services.trainer.storage.database import Database
from services.trainer.storage.texts import check_storable

MAX_TOLD = 100
"""Refused samples that an answer names; the others are counted. The contract states it."""
MAX_PAGE = 1000
"""Samples on one page; the contract states it."""
MAX_TEXT = 200
"""Characters of a client's id and of a source; the contract states it."""

_TRIES = 5
_TOKEN = re.compile(r"[0-9]{1,18}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_Select = Select[*tuple[Any, ...]]


@dataclass(frozen=True)
class NewSample:
    """One image as it arrives."""

    image: bytes
    """An encoded file."""
    label: str
    client_id: str = ""
    """What its owner calls it; only told, never looked up."""
    source: str = ""
    """Where it comes from."""


@dataclass(frozen=True)
class Rejection:
    """Why a sample was refused."""

    index: int
    """Among all samples of the import, from 0."""
    client_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Sample:
    """One image that is kept."""

    number: int
    label: str
    content_digest: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    width: int
    height: int
    format: str
    orientation: int
    client_id: str
    source: str
    create_time: str
    contributor: str
    """Who gave it; empty for the owner."""
    observation: int | None
    """Picture that it is; none for one of an earlier release."""


@dataclass(frozen=True)
class _Taken:
    """One image that is stored, and has no row yet."""

    sample: NewSample
    content: Content
    label: int


@dataclass
class ImportCounts:
    """What became of the samples so far."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    """The first `MAX_TOLD`."""


class SampleImport:
    """One import into one model; each refused sample fails alone.

    Args:
        database: Where samples are kept.
        blobs: Folder of their files.
        model: Name of the model.
        contributor: Who gives them; empty for the owner.
        is_trusted: Says, in each transaction that writes samples, whether their word decides, as the owner's and a
            reviewer's does; raises NotAllowed where nothing is taken of them. Others give new pictures to learn from;
            on one that users have sent before, among them all that candidates are judged on, they add a word.

    Raises:
        NotFound: The model is unknown.
    """

    def __init__(
        self,
        database: Database,
        blobs: Path,
        model: str,
        contributor: str = "",
        is_trusted: Callable[[Session], bool] = lambda _: True,
    ) -> None:
        self._database = database
        self._blobs = Blobs(blobs)
        self._model = find_model(database, model)
        self._contributor = contributor
        self._is_trusted = is_trusted
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "import")
        self._seen = 0
        self.counts = ImportCounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False)  # of a call that was cancelled, one may still be at work

    def add(self, samples: Sequence[NewSample]) -> None:
        """Take in the next samples; when this returns, those that are counted as accepted survive a power cut.

        Raises:
            Overloaded: The disk has no room; the samples of earlier calls are kept.
            NotAllowed: Nothing is taken of the contributor any more.
        """
        with self._database.read() as session:
            self._is_trusted(session)  # before a file of theirs is stored
        outcomes = list(enumerate(self._threads.map(self._take, samples)))
        refused = {position: each for position, each in outcomes if isinstance(each, InvalidInput)}
        refused |= self._insert({position: each for position, each in outcomes if not isinstance(each, InvalidInput)})
        for position in sorted(refused):
            self._reject(self._seen + position, samples[position], refused[position])
        self._seen += len(samples)

    def _take(self, sample: NewSample) -> _Taken | InvalidInput:
        """Check, strip and store one image; a blob that no row comes to name costs room and nothing else."""
        try:
            label = self._model.label_number(sample.label)
            for name, text in (("client_id", sample.client_id), ("source", sample.source)):
                _check_text(name, text)
            return _Taken(sample, store_picture(self._blobs, sample.image), label)
        except InvalidInput as error:
            return error

    def _insert(self, taken: Mapping[int, _Taken]) -> dict[int, InvalidInput]:
        """Write the rows of new pixels in one transaction; return, by position, those that contradict older ones."""
        made = 0
        refused: dict[int, InvalidInput] = {}
        for attempt in range(_TRIES):
            try:
                # Alone, so that numbers rise as transactions end: whoever has seen a sample has seen all before it.
                with self._database.begin(alone=True) as session:
                    new, refused = self._sort_out(session, taken)
                    made = self._add(session, new, self._is_trusted(session))
                break
            except IntegrityError:  # another import has just added one of them: look again
                if attempt == _TRIES - 1:
                    raise
        self.counts.accepted += made
        self.counts.duplicates += len(taken) - made - len(refused)
        return refused

    def _sort_out(self, session: Session, taken: Mapping[int, _Taken]) -> tuple[list[_Taken], dict[int, InvalidInput]]:
        statement = select(SampleRow.pixel_digest, SampleRow.label).where(
            SampleRow.model == self._model.name,
            SampleRow.pixel_digest.in_([each.content.pixel_digest for each in taken.values()]),
        )
        labels = dict(session.execute(statement).all())
        found = set(labels)
        new: list[_Taken] = []
        refused: dict[int, InvalidInput] = {}
        for position, each in taken.items():
            digest = each.content.pixel_digest
            known = labels.setdefault(digest, each.label)
            if known != each.label:
                refused[position] = self._contradiction(each.label, known)
            elif digest not in found:
                found.add(digest)
                new.append(each)
        return new, refused

    def _add(self, session: Session, new: Sequence[_Taken], trusted: bool) -> int:
        """Make a sample of each, and an observation with a vote, so that it can be traced and deleted.

        Who is not trusted only votes on pictures that are there: those are judged as any that users have sent.

        Returns:
            How many samples were made.
        """
        contents = [each.content for each in new]
        for each in new:
            if not self._blobs.has(each.content.content_digest):  # what nobody referred to was removed meanwhile
                store_picture(self._blobs, each.sample.image)
        known = set(observed(session, self._model.name, contents))
        # They are meant to be learnt from; what came from users first keeps the role that it has.
        pictures = observe(session, self._model.name, contents, lambda _: Role.TRAIN)
        sampled = [each for each in new if trusted or each.content.pixel_digest not in known]
        rows = [self._row(each, pictures[each.content.pixel_digest]) for each in sampled]
        session.add_all(rows)
        session.flush()
        for each in new:
            if not trusted and each.content.pixel_digest in known:
                vote(session, pictures[each.content.pixel_digest], self._word(each, trusted))
        for each, row in zip(sampled, rows, strict=True):
            picture = pictures[each.content.pixel_digest]
            word = self._word(each, trusted)
            if picture.pixel_digest in known:
                vote(session, picture, word)
            else:
                session.add(VoteRow(observation=picture.number, **asdict(word), time=row.create_time))
            picture.state, picture.reason, picture.detail = State.ACCEPTED, "", ""
            picture.label, picture.label_probability, picture.sample = each.label, 1.0, row.number
        return len(sampled)

    def _word(self, taken: _Taken, trusted: bool) -> Word:
        return Word(self._contributor, VoteKind.LABEL, trusted=trusted, label=taken.label)

    def _row(self, taken: _Taken, picture: ObservationRow) -> SampleRow:
        content = taken.content
        return SampleRow(
            model=self._model.name,
            content_digest=picture.content_digest,
            pixel_digest=content.pixel_digest,
            label=taken.label,
            width=picture.width,
            height=picture.height,
            format=picture.format,
            orientation=picture.orientation,
            client_id=taken.sample.client_id,
            source=taken.sample.source,
            create_time=now(),
            contributor=self._contributor,
            observation=picture.number,
        )

    def _contradiction(self, label: int, known: int) -> InvalidInput:
        return InvalidInput(
            f"the image is labelled {self._model.labels[label]!r} and was imported as {self._model.labels[known]!r} "
            "before; leave out the one that is wrong",
            reason="CONFLICTING_LABEL",
        )

    def _reject(self, index: int, sample: NewSample, error: InvalidInput) -> None:
        self.counts.rejected += 1
        if len(self.counts.rejections) < MAX_TOLD:
            rejection = Rejection(index, sample.client_id[:MAX_TEXT], error.reason, error.message)
            self.counts.rejections.append(rejection)


def list_samples(
    database: Database,
    model: str,
    *,
    label: str = "",
    source: str = "",
    content_digest: str = "",
    page_size: int = 0,
    page_token: str = "",
) -> tuple[list[Sample], str]:
    """Return samples in the order of their arrival, and the token of the next page; empty after the last.

    Args:
        database: Where they are.
        model: Name of their model.
        label: Only those of this label; empty is all.
        source: Only those that were said to come from there; empty is all.
        content_digest: Only those whose stored file has this SHA-256, as `sha256:<hex>`; empty is all.
        page_size: At most this many, up to `MAX_PAGE`; 0 is that.
        page_token: What the last page gave; empty is the first.

    Raises:
        NotFound: The model is unknown.
        InvalidInput: The label is not one of the model's, or the digest, the token or the size is malformed.
    """
    task = find_model(database, model)
    if page_size < 0:
        raise InvalidInput(f"page_size is {page_size}; give 1 to {MAX_PAGE}, or 0 for that", field="page_size")
    if page_token and not _TOKEN.fullmatch(page_token):
        raise InvalidInput(
            f"page_token {page_token[:50]!r} is not one; give next_page_token of the page before", field="page_token"
        )
    if content_digest and not _DIGEST.fullmatch(content_digest):
        raise InvalidInput(
            f"content_digest {content_digest[:100]!r} is not valid; give sha256: and 64 hexadecimal digits, as "
            "ListSamples does",
            field="content_digest",
        )
    size = min(page_size or MAX_PAGE, MAX_PAGE)
    statement = select(SampleRow).where(SampleRow.model == model, SampleRow.number > int(page_token or 0))
    if label:
        statement = statement.where(SampleRow.label == task.label_number(label))
    if source:
        statement = statement.where(SampleRow.source == source)
    if content_digest:
        statement = statement.where(SampleRow.content_digest == content_digest.removeprefix("sha256:"))
    with database.read() as session:
        rows = list(session.scalars(statement.order_by(SampleRow.number).limit(size + 1)))
    page = [_sample(task, row) for row in rows[:size]]
    return page, str(page[-1].number) if len(rows) > size else ""


def newest_sample(database: Database, model: str) -> int:
    """Return the number of a model's newest sample; samples that come later have higher ones.

    Raises:
        NotFound: The model is unknown.
        InvalidInput: It has no samples.
    """
    find_model(database, model)
    with database.read() as session:
        number = session.scalar(select(func.max(SampleRow.number)).where(SampleRow.model == model))
    if number is None:
        raise InvalidInput(
            f"model {model!r} has no samples; import some with ImportSamples first",
            reason="NO_SAMPLES",
            field="dataset",
        )
    return number


def list_picture_files(database: Database, blobs: Path, samples: ModelSamples) -> list[PictureFile]:
    """Return samples of a model as pictures to decode, in the order of arrival; not those that only judge."""
    store = Blobs(blobs)
    columns = (
        SampleRow.number, SampleRow.client_id, SampleRow.content_digest, SampleRow.label, SampleRow.orientation,
    )  # fmt: skip
    chosen = _with_roles(select(*columns), samples).where(
        or_(ObservationRow.role.is_(None), ObservationRow.role != Role.JUDGE)
    )
    with database.read() as session:
        rows = session.execute(chosen.order_by(SampleRow.number)).all()
    return [
        PictureFile(
            f"sample {number}" + (f" ({client_id})" if client_id else ""),
            store.path(digest),
            label,
            orientation=orientation,
            content=digest,
        )
        for number, client_id, digest, label, orientation in rows
    ]


def count_judging(database: Database, samples: ModelSamples) -> int:
    """Return how many of *samples* `list_picture_files` leaves out: what judges a model must not be learnt."""
    chosen = _with_roles(select(func.count(SampleRow.number)), samples).where(ObservationRow.role == Role.JUDGE)
    with database.read() as session:
        return session.scalar(chosen) or 0


def _with_roles(statement: _Select, samples: ModelSamples) -> _Select:
    chosen = (
        statement.select_from(SampleRow)
        .outerjoin(ObservationRow, SampleRow.observation == ObservationRow.number)
        .where(SampleRow.model == samples.model, SampleRow.number > samples.after)
    )
    return chosen if samples.last is None else chosen.where(SampleRow.number <= samples.last)


def _sample(model: Model, row: SampleRow) -> Sample:
    return Sample(
        row.number,
        model.labels[row.label],
        row.content_digest,
        row.width,
        row.height,
        row.format,
        row.orientation,
        row.client_id,
        row.source,
        row.create_time,
        row.contributor,
        row.observation,
    )


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise InvalidInput(f"{name} has {len(text)} characters; the limit is {MAX_TEXT}; shorten it", field=name)
    check_storable(text, name)
