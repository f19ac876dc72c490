"""Tasks that customers name: which classes there are, and how a picture becomes pixels."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from services.common.errors import Conflict, InvalidInput, NotFound
from services.common.manifest import PreprocessSpec
from services.trainer.clock import now
from services.trainer.data.pictures import check_spec
from services.trainer.data.tables import ModelRow, SampleRow
from services.trainer.storage.database import Database

MAX_LABELS = 10_000
"""Classes of one model; the contract states it."""
MAX_LABEL_LENGTH = 200
"""Characters of one label; the contract states it."""

_COMPARED = 300
"""Names that a wrong one is compared with; each takes a fraction of a millisecond."""
_COMPARED_LENGTH = 50

_JOINER = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
"""What Persian, the scripts of India and composed emoji are written with; seen by what it does to its neighbours."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as inference has it for the folder of a model


@dataclass(frozen=True)
class Model:
    """One task."""

    name: str
    labels: tuple[str, ...]
    """In the order of the label numbers."""
    spec: PreprocessSpec
    create_time: str
    """RFC 3339, UTC."""

    def label_number(self, label: str) -> int:
        """Return the number of *label*.

        Raises:
            InvalidInput: The model has no such label.
        """
        number = self._numbers.get(label)
        if number is not None:
            return number
        nearest = _nearest(label, self.labels)
        meant = f"did you mean {nearest!r}?" if nearest else f"use one of {', '.join(self.labels[:20])}"
        raise InvalidInput(
            f"label {label[:100]!r} is not one of model {self.name!r}; {meant}", reason="UNKNOWN_LABEL", field="label"
        )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}


def create_model(database: Database, name: str, labels: Sequence[str], spec_json: bytes) -> Model:
    """Name a new task; asking again for an equal one returns it as it is.

    Args:
        database: Where tasks are kept.
        name: As a model's folder may be named.
        labels: Names of the classes, in the order of the label numbers.
        spec_json: A `PreprocessSpec` as JSON.

    Raises:
        InvalidInput: A value is malformed.
        Conflict: There is another task of that name.
    """
    _check_name(name)
    _check_labels(labels)
    spec = _parse_spec(spec_json)
    row = ModelRow(name=name, labels=list(labels), preprocess_spec=spec.canonical_json(), create_time=now())
    try:
        with database.begin() as session:
            found = session.get(ModelRow, name)
            if found is None:
                session.add(row)
                return _model(row)
    except IntegrityError:  # another trainer on the same database was quicker
        with database.read() as session:
            found = session.get_one(ModelRow, name)
    model = _model(found)
    if (model.labels, model.spec) != (tuple(labels), spec):
        raise Conflict(
            f"model {name!r} exists with labels {', '.join(model.labels[:20])} and preprocess spec "
            f"{model.spec.canonical_json().decode()}; use another name, or ask for these",
            reason="MODEL_EXISTS",
        )
    return model


def find_model(database: Database, name: str) -> Model:
    """Return the task of that name.

    Raises:
        NotFound: There is none.
    """
    with database.read() as session:
        row = session.get(ModelRow, name)
        if row is not None:
            return _model(row)
        names = list(session.scalars(select(ModelRow.name).order_by(ModelRow.name)))
    nearest = _nearest(name, names)
    meant = f"did you mean {nearest!r}?" if nearest else "create it with CreateModel first"
    raise NotFound(f"model {name[:150]!r} is unknown; {meant}", reason="MODEL_NOT_FOUND", field="model")


def list_models(database: Database) -> list[Model]:
    """Return all tasks by name."""
    with database.read() as session:
        return [_model(row) for row in session.scalars(select(ModelRow).order_by(ModelRow.name))]


def check_visible(label: str, field: str = "label") -> None:
    """Refuse a label that is not what it looks like, or that tells a terminal what to do.

    Args:
        label: Of any length.
        field: Of the request.

    Raises:
        InvalidInput: A character cannot be seen: a control character, an end of a line, a blank other than a space, a
            change of direction, a joiner where nothing is to be joined.
    """
    hidden = next((each for each in _JOINER.sub("", label) if not each.isprintable()), None)
    if hidden is not None:
        raise InvalidInput(
            f"label {label[:50]!r} has the character U+{ord(hidden):04X}, which cannot be seen; leave it out",
            reason="NOT_VISIBLE",
            field=field,
        )


def count_samples(database: Database, model: Model) -> list[int]:
    """Return how many samples each label of *model* has, in the order of its labels."""
    statement = select(SampleRow.label, func.count()).where(SampleRow.model == model.name).group_by(SampleRow.label)
    with database.read() as session:
        counts = dict(session.execute(statement).all())
    return [counts.get(number, 0) for number in range(len(model.labels))]


def _model(row: ModelRow) -> Model:
    spec = PreprocessSpec.model_validate_json(row.preprocess_spec)
    return Model(row.name, tuple(row.labels), spec, row.create_time)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"model name {name[:150]!r} is not valid; use up to 128 letters, digits, '.', '_' and '-', and begin with "
            "a letter or a digit",
            field="name",
        )


def _check_labels(labels: Sequence[str]) -> None:
    if not 2 <= len(labels) <= MAX_LABELS:
        raise InvalidInput(
            f"the model has {len(labels)} labels; name 2 to {MAX_LABELS:,} classes", reason="ONE_CLASS", field="labels"
        )
    wrong = next((each for each in labels if not each.strip() or len(each) > MAX_LABEL_LENGTH), None)
    if wrong is not None:
        raise InvalidInput(f"label {wrong[:50]!r} is not valid; use 1 to {MAX_LABEL_LENGTH} characters", field="labels")
    for each in labels:
        check_visible(each, "labels")
    repeated = next((each for each, count in Counter(labels).items() if count > 1), None)
    if repeated is not None:
        raise InvalidInput(f"label {repeated!r} is named twice; name each class once", field="labels")


def _nearest(word: str, names: Sequence[str]) -> str:
    """Return the name that was likely meant; empty where none is near, or where looking would take too long."""
    short = [name for name in names[:_COMPARED] if len(name) <= _COMPARED_LENGTH]
    return next(iter(get_close_matches(word, short, n=1)), "") if len(word) <= _COMPARED_LENGTH else ""


def _parse_spec(document: bytes) -> PreprocessSpec:
    try:
        spec = PreprocessSpec.model_validate_json(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())
        raise InvalidInput(
            f"the preprocess spec is not valid; correct it: {problems}", field="preprocess_spec"
        ) from error
    check_spec(spec)
    return spec
