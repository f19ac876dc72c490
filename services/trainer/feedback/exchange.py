"""Feedback as files: JSON lines, and tasks as Label Studio imports and exports them. Both ways, without its packages.

Label Studio's format: https://labelstud.io/guide/export and https://labelstud.io/guide/task_format, with one `Choices`
control named `label` over an `Image` named `image`.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from sqlalchemy import select

from services.common.errors import InvalidInput
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import find_model
from services.trainer.data.observing import VoteKind
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.views import ObservationView, view
from services.trainer.feedback.voting import NewFeedback
from services.trainer.storage.database import Database

_AT_ONCE = 100
_MOST_NUMBER = 2**63 - 1
_CONTROL, _OBJECT = "label", "image"
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp"}


@dataclass(frozen=True)
class FeedbackLine:
    """One picture with what was said of it, and its file where that is asked for."""

    observation: ObservationView
    format: str
    image: bytes


def export(
    database: Database, blobs: Path, model: str, after: int = 0, *, with_images: bool = False
) -> Iterator[FeedbackLine]:
    """Yield all pictures of a model of which something was said, in the order of their arrival.

    Args:
        database: Where they are.
        blobs: Folder of their files.
        model: Name of the model.
        after: Only those with higher numbers.
        with_images: Whether their files are read; one that was deleted meanwhile, or is damaged, is empty.

    Raises:
        NotFound: The model is unknown.
    """
    task = find_model(database, model)
    store = Blobs(blobs)
    while True:
        statement = select(ObservationRow).where(ObservationRow.model == model, ObservationRow.number > after)
        with database.read() as session:
            rows = list(session.scalars(statement.order_by(ObservationRow.number).limit(_AT_ONCE)))
            views = view(session, task, rows)
        for row, each in zip(rows, views, strict=True):
            if each.votes:
                yield FeedbackLine(each, row.format, store.read(row.content_digest) or b"" if with_images else b"")
        if len(rows) < _AT_ONCE:
            return
        after = rows[-1].number


def write_lines(lines: Iterable[FeedbackLine]) -> Iterator[bytes]:
    """Yield each picture as one line of JSON, with all that was said of it.

    Where a reviewer may not see a label, `label` is empty: else the file, read back by somebody who is trusted, would
    let what others say decide.
    """
    for line in lines:
        each, shown = line.observation, line.observation.for_reviewers()
        fields = {
            "observation": each.number,
            "model": each.model,
            "content_digest": f"sha256:{each.content_digest}",
            "state": each.state,
            "reason": each.reason,
            "role": each.role,
            "label": shown.label,
            "label_probability": shown.label_probability,
            "predicted_label": each.predicted_label,
            "predicted_probability": each.predicted_probability,
            "version": each.version,
            "drawn": each.drawn,
            "prediction_ids": each.prediction_ids,
            "create_time": each.create_time,
            "votes": [
                {
                    "contributor": vote.contributor,
                    "verdict": vote.kind,
                    "label": vote.label,
                    "trusted": vote.trusted,
                    "comment": vote.comment,
                    "time": vote.time,
                }
                for vote in each.votes
            ],
        }
        if line.image:
            fields |= {"format": line.format, "image": base64.b64encode(line.image).decode()}
        yield json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def read_lines(text: str) -> Iterator[NewFeedback]:
    """Yield the labels in lines of JSON, as `write_lines` writes them or with the fields of `NewFeedback`.

    A line names its picture by `prediction_id`, by the first of `prediction_ids`, by `observation`, or by `image` in
    base64 with its `model`; and its `label`, or whether the answer was `correct`. Lines without either are left out.

    Raises:
        InvalidInput: A line is no such object.
    """
    for number, line in enumerate(text.split("\n"), 1):  # what else Unicode has for an end of a line may be in a text
        if line.strip():
            fields = _object(line, f"line {number}")
            label, correct = _text(fields.get("label")), fields.get("correct")
            if label or isinstance(correct, bool):
                yield NewFeedback(
                    _text(fields.get("prediction_id")) or _text(_first(fields.get("prediction_ids"))),
                    _text(fields.get("model")),
                    label,
                    correct if isinstance(correct, bool) and not label else None,
                    _text(fields.get("comment")),
                    _decoded(_text(fields.get("image")), f"line {number}"),
                    _number(fields.get("observation"), f"line {number}"),
                )


def write_label_studio(lines: Iterable[FeedbackLine]) -> Iterator[bytes]:
    """Yield the pieces of one JSON file of tasks; the answer is a prediction, each label an annotation.

    Annotators are reviewers: what those may not see before they decide is not in it.
    """
    first = True
    for line in lines:
        each = line.observation.for_reviewers()
        answered = each.predicted_label
        task = {
            "data": {
                _OBJECT: _data_url(line),
                "observation": each.number,
                "model": each.model,
                "prediction_id": each.prediction_ids[0] if each.prediction_ids else "",
                "content_digest": f"sha256:{each.content_digest}",
            },
            "predictions": [
                {
                    "model_version": str(each.version),
                    "score": each.predicted_probability,
                    "result": [_choice(answered)],
                }
            ]
            if answered
            else [],
            "annotations": [
                {"result": [_choice(vote.label)] if vote.label else [], "was_cancelled": not vote.label}
                for vote in each.votes
                if vote.label or vote.kind is VoteKind.UNDECIDABLE
            ],
        }
        yield (b"[\n" if first else b",\n") + json.dumps(task, ensure_ascii=False).encode()
        first = False
    yield b"[]\n" if first else b"\n]\n"


def read_label_studio(text: str) -> Iterator[NewFeedback | InvalidInput]:
    """Yield the label of each task that was annotated: the newest annotation's first choice.

    Args:
        text: One task, or a list of tasks, as Label Studio exports them; `data` names the picture as
            `write_label_studio` does, or holds it as a `data:` URL with its `model`.

    Yields:
        What a task says, or in its place why it is refused: each task fails alone.
    """
    try:
        found = read_json(text, "the file")
    except InvalidInput as error:
        yield error
        return
    for number, task in enumerate(found if isinstance(found, list) else [found], 1):
        try:
            said = _said(task, f"task {number}")
        except InvalidInput as error:
            yield error
        else:
            if said is not None:
                yield said


def read_json(text: str, name: str) -> Any:
    """Return the document *text*, all of whose texts can be encoded.

    Args:
        text: JSON.
        name: What it is, for the error.

    Raises:
        InvalidInput: It is not JSON, or half of a pair of surrogates is in it.
    """
    try:
        return from_json(text.encode())
    except ValueError as error:
        raise InvalidInput(f"{name} is not JSON: {error}; correct it there", reason="MALFORMED") from error


def _said(task: object, name: str) -> NewFeedback | None:
    """Return what was annotated; None where nothing was."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(data, dict):
        raise InvalidInput(
            f"{name} is no task of Label Studio: it has no data; export tasks as JSON", reason="MALFORMED"
        )
    label = _newest_choice(task.get("annotations"))
    if not label:
        return None
    image = _text(data.get(_OBJECT))
    content = image.partition(";base64,")[2] if image.startswith("data:") else ""
    return NewFeedback(
        _text(data.get("prediction_id")),
        _text(data.get("model")),
        label,
        image=_decoded(content, name),
        observation=_number(data.get("observation"), name),
    )


def _newest_choice(annotations: object) -> str:
    if not isinstance(annotations, list):
        return ""
    done = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    newest = max(done, key=lambda each: _text(each.get("updated_at") or each.get("created_at")), default={})
    results = newest.get("result")
    for result in results if isinstance(results, list) else ():
        value = result.get("value") if isinstance(result, dict) else None
        choice = _text(_first(value.get("choices"))) if isinstance(value, dict) else ""
        if choice:
            return choice
    return ""


def _choice(label: str) -> dict[str, Any]:
    return {"from_name": _CONTROL, "to_name": _OBJECT, "type": "choices", "value": {"choices": [label]}}


def _data_url(line: FeedbackLine) -> str:
    if not line.image:
        return ""
    return f"data:{_MEDIA_TYPES[line.format]};base64,{base64.b64encode(line.image).decode()}"


def _object(text: str, name: str) -> dict[str, Any]:
    found = read_json(text, name)
    if not isinstance(found, dict):
        raise InvalidInput(f"{name} is JSON, and no object; write one object a line", reason="MALFORMED")
    return found


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"the image of {name} is not base64: {error}; encode it", reason="MALFORMED") from error


def _first(values: object) -> object:
    return values[0] if isinstance(values, list) and values else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object, name: str) -> int:
    """Return the number of a picture; 0 where none is named."""
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    if not 0 <= value <= _MOST_NUMBER:
        raise InvalidInput(
            f"observation of {name} is {str(value)[:50]}; give 1 to {_MOST_NUMBER}, as an export does",
            reason="MALFORMED",
            field="observation",
        )
    return value
