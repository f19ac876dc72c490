"""Takes in what the gateway has captured: each picture once, each answer once, draws in the order of their arrival."""

import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import groupby
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotReady, Overloaded
from services.trainer.clock import now
from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import Content, observe, store_picture
from services.trainer.data.pictures import read_picture
from services.trainer.data.tables import ModelRow, ObservationRow, PredictionRow
from services.trainer.feedback.forgotten import deleted_until, forgotten_until, has_deletions
from services.trainer.feedback.policy import PolicyOf
from services.trainer.feedback.pseudonyms import fingerprint
from services.trainer.feedback.roles import role_of
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.storage.database import Database
from services.trainer.storage.texts import NUL

MOST_ITEMS = 64
"""Of one call, which is one transaction."""

_PREDICTION_ID = re.compile(r"[0-9a-f]{32}")
_CONTRIBUTOR_DELETED = "CONTRIBUTOR_DELETED"
_DISK_FULL = "DISK_FULL"
_MALFORMED = "MALFORMED"
_SAMPLE_DELETED = "SAMPLE_DELETED"
_UNKNOWN_MODEL = "UNKNOWN_MODEL"


class Strategy(StrEnum):
    """Why a prediction was captured."""

    RANDOM = "RANDOM"
    LOW_CONFIDENCE = "LOW_CONFIDENCE"
    RARE_CLASS = "RARE_CLASS"


@dataclass(frozen=True)
class CapturedItem:
    """One answer with its picture."""

    prediction_id: str
    """32 hexadecimal digits."""
    model: str
    version: int
    generation: int
    """Of the traffic that chose the version."""
    preprocess_digest: str
    image: bytes
    """File as it came."""
    labels: tuple[tuple[str, float], ...]
    """With their probabilities, by falling probability."""
    contributor: str
    """Empty for a caller from elsewhere without a key."""
    time: str
    """RFC 3339, UTC, to the millisecond."""
    strategy: str
    probability: float
    """With which any prediction was drawn at random at that moment."""


@dataclass(frozen=True)
class Taken:
    """What became of an item."""

    observation: int
    """Number of its picture; 0 where it was refused."""
    new: bool
    """Whether the prediction was not there before."""
    refusal: str
    """Empty, or a stable word such as NOT_AN_IMAGE, UNKNOWN_MODEL, MALFORMED, CONTRIBUTOR_DELETED,
    SAMPLE_DELETED or DISK_FULL."""


class Intake:
    """Takes captured predictions in; any number of threads may.

    Args:
        database: Migrated.
        blobs: Folder of pictures.
        policy_of: Says which share of the contents is to judge by.
    """

    def __init__(self, database: Database, blobs: Path, policy_of: PolicyOf) -> None:
        self._database = database
        self._blobs = Blobs(blobs)
        self._policy_of = policy_of
        self._threads = ThreadPoolExecutor(min(2, os.cpu_count() or 1), "capture")

    def take(self, items: Sequence[CapturedItem]) -> list[Taken]:
        """Take in at most `MOST_ITEMS`, in one transaction; what is taken survives a power cut when this returns.

        An item whose prediction is there already changes nothing. One that cannot be kept is refused for good.

        Raises:
            NotReady: The database does not answer; send all of them again.
        """
        assert len(items) <= MOST_ITEMS
        with self._database.read() as session:
            known = _known_predictions(session, items)
            models = set(session.scalars(select(ModelRow.name)))
            late = _find_late(session, items)
        stored = list(self._threads.map(partial(self._store, known=known, models=models, late=late), items))
        try:
            with self._database.begin(alone=True) as session:
                return self._insert(session, items, stored)
        except NotReady as error:
            if error.reason != _DISK_FULL:
                raise
            return [Taken(known.get(item.prediction_id, 0), False, _refusal(item, known)) for item in items]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)

    def _store(self, item: CapturedItem, known: Mapping[str, int], models: set[str], late: "_Late") -> Content | str:
        """Return the stored content of an item or why it is refused; of one that is there already, nothing is done."""
        if item.prediction_id in known:
            return ""
        if item.model not in models:
            return _UNKNOWN_MODEL
        if not _is_well_formed(item):
            return _MALFORMED
        if late.by_contributor(item):
            return _CONTRIBUTOR_DELETED
        try:
            if late.pictures and late.by_picture(item, read_picture(item.image).pixel_digest):
                return _SAMPLE_DELETED
            return store_picture(self._blobs, item.image)
        except InvalidInput as error:
            return error.reason
        except Overloaded as error:
            return error.reason

    def _insert(self, session: Session, items: Sequence[CapturedItem], stored: Sequence[Content | str]) -> list[Taken]:
        known = _known_predictions(session, items)  # again, now that nobody else writes
        late = _find_late(session, items)
        stored = [
            (isinstance(each, Content) and late.refusal(item, each)) or each
            for item, each in zip(items, stored, strict=True)
        ]
        loops: dict[str, LoopModelRow] = {}
        pictures: dict[tuple[str, str], ObservationRow] = {}
        pairs = [(item, each) for item, each in zip(items, stored, strict=True) if isinstance(each, Content)]
        for item, picture in pairs:
            if not self._blobs.has(picture.content_digest):  # what nobody referred to was removed meanwhile
                store_picture(self._blobs, item.image)
        for model, group in groupby(sorted(pairs, key=lambda pair: pair[0].model), lambda pair: pair[0].model):
            contents = [picture for _, picture in group]
            loop = loops[model] = ensure_loop_model(session, model)
            share = self._policy_of(model).judging.share
            rows = observe(session, model, contents, partial(role_of, salt=loop.salt, judge_share=share))
            pictures |= {(model, digest): row for digest, row in rows.items()}
        taken = []
        for item, content in zip(items, stored, strict=True):
            if item.prediction_id in known:
                taken.append(Taken(known[item.prediction_id], False, ""))
            elif isinstance(content, str):
                taken.append(Taken(0, False, content))
            else:
                number = pictures[item.model, content.pixel_digest].number
                session.add(_prediction(item, number, loops[item.model]))
                known[item.prediction_id] = number
                taken.append(Taken(number, True, ""))
        return taken


def ensure_loop_model(session: Session, model: str) -> LoopModelRow:
    """Return the row that has the model's salt, which is drawn when it is first asked for.

    The session's transaction must be alone, and there must be such a model.
    """
    row = session.get(LoopModelRow, model)
    if row is None:
        row = LoopModelRow(model=model, salt=secrets.token_hex(16), base="", create_time=now(), restarts={})
        session.add(row)
        session.flush()
    return row


def find_prediction(session: Session, prediction_id: str) -> PredictionRow | None:
    """Return the prediction of that id; None where it was not captured, or where that is no id."""
    return session.get(PredictionRow, prediction_id) if _PREDICTION_ID.fullmatch(prediction_id) else None


def _known_predictions(session: Session, items: Sequence[CapturedItem]) -> dict[str, int]:
    statement = select(PredictionRow.id, PredictionRow.observation).where(
        PredictionRow.id.in_([each.prediction_id for each in items if _PREDICTION_ID.fullmatch(each.prediction_id)])
    )
    return dict(session.execute(statement).all())


@dataclass(frozen=True)
class _Late:
    """What comes too late, since it is to be forgotten."""

    contributors: Mapping[str, datetime]
    """Until when what they sent is refused."""
    pictures: Mapping[tuple[str, str], datetime]
    """By model and fingerprint of the pixels, likewise."""

    def by_contributor(self, item: CapturedItem) -> bool:
        """Whether whoever sent it is to be forgotten."""
        return _is_before(item.time, self.contributors.get(item.contributor))

    def by_picture(self, item: CapturedItem, pixel_digest: str) -> bool:
        """Whether its picture is deleted."""
        return _is_before(item.time, self.pictures.get((item.model, fingerprint(pixel_digest))))

    def refusal(self, item: CapturedItem, content: Content) -> str:
        """Return why it is refused; empty where it is not."""
        if self.by_contributor(item):
            return _CONTRIBUTOR_DELETED
        return _SAMPLE_DELETED if self.by_picture(item, content.pixel_digest) else ""


def _find_late(session: Session, items: Sequence[CapturedItem]) -> _Late:
    if not has_deletions(session):
        return _Late({}, {})
    contributors = forgotten_until(session, {item.contributor for item in items})
    return _Late(contributors, deleted_until(session, {item.time for item in items}))


def _is_before(time: str, until: datetime | None) -> bool:
    return until is not None and datetime.fromisoformat(time) < until


def _prediction(item: CapturedItem, observation: int, loop: LoopModelRow) -> PredictionRow:
    draw = None
    if item.strategy == Strategy.RANDOM:
        draw = loop.last_draw = loop.last_draw + 1
    return PredictionRow(
        id=item.prediction_id,
        model=item.model,
        version=item.version,
        generation=item.generation,
        preprocess_digest=item.preprocess_digest,
        observation=observation,
        contributor=item.contributor,
        strategy=item.strategy,
        probability=item.probability,
        draw=draw,
        labels=[list(pair) for pair in item.labels],
        time=item.time,
    )


def _is_well_formed(item: CapturedItem) -> bool:
    probable = 0 < item.probability <= 1 if item.strategy == Strategy.RANDOM else item.probability == 0
    return (
        bool(_PREDICTION_ID.fullmatch(item.prediction_id))
        and item.strategy in set(Strategy)
        and probable
        and bool(item.labels)
        and all(NUL not in name and math.isfinite(probability) for name, probability in item.labels)
        and NUL not in item.contributor + item.preprocess_digest
        and item.version > 0
        and 0 < len(item.time) <= 32
        and len(item.contributor) <= 64
        and len(item.preprocess_digest) <= 80
    )


def _refusal(item: CapturedItem, known: Mapping[str, int]) -> str:
    return "" if item.prediction_id in known else _DISK_FULL
