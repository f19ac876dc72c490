"""`aimass feedback`: says what predictions should have been, one by one or as files."""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from aimass.client import Client
from aimass.console import say
from aimass.progress import progress_bar
from aimass.suite_access import open_suite
from aimass.trainer.v1 import feedback_pb2 as pb
from services.common.errors import InvalidInput
from services.trainer.feedback.exchange import read_json, read_lines
from services.trainer.feedback.trust import (
    NEEDS_LABEL,
    NEEDS_VOTES,
    UNDECIDABLE,
    VOTES_DIFFER,
    WAITS_FOR_EMBEDDING,
    WAITS_FOR_REVIEW,
)
from services.trainer.feedback.voting import NewFeedback
from services.trainer.runs.folder import replacing

SHOWN_REJECTIONS = 20
_MEANINGS = {
    "accepted": "the model will learn from it, or be judged by it",
    "pending": "it does not count yet",
    "quarantined": "a reviewer looks at it first",
    "proposed": "the model does not know this label yet",
    "rejected": "a reviewer did not want the picture",
}
_REASONS = {
    NEEDS_LABEL: "it counts once somebody says what it is",
    NEEDS_VOTES: "it counts once enough others say the same",
    VOTES_DIFFER: "others say something else; it counts once more people agree",
    WAITS_FOR_EMBEDDING: "it is compared with similar pictures first",
    WAITS_FOR_REVIEW: "it counts once a reviewer says the same",
    UNDECIDABLE: "a reviewer said that nobody can tell what it is",
}
"""By the reason of the state, where that tells more."""


def send_feedback(
    out: Console,
    address: str,
    key: str,
    prediction_id: str,
    label: str | None,
    right: bool,
    wrong: bool,
    comment: str,
    image: Path | None,
    model: str,
) -> None:
    """Say what a prediction should have been: its *label*, or that it was *right* or *wrong*.

    Raises:
        InvalidInput: None of these is given, or several.
        PredictionError: The suite refuses it or does not answer.
    """
    if [label is not None, right, wrong].count(True) != 1:
        raise InvalidInput("give one of --label LABEL, --right and --wrong")
    correct = right if label is None else None
    with Client(address, key) as client:
        told = client.send_feedback(
            prediction_id, label, correct=correct, comment=comment, image=image, model=model, timeout=None
        )
    why = f" ({told.state_reason})" if told.state_reason else ""
    meaning = _REASONS.get(told.state_reason) or _MEANINGS.get(told.state, "")
    again = "" if told.created else "; it was said before"
    say(out, f"{told.state}{why}{': ' if meaning else ''}{meaning}{again}")


def import_file(out: Console, address: str, key: str, model: str, file: Path) -> None:
    """Send what a file says of pictures of *model*: JSON lines, or tasks as Label Studio exports them.

    Raises:
        InvalidInput: The file is malformed; then nothing was sent.
        PredictionError: The suite refuses it or does not answer.
    """
    messages = _read(file)

    def requests() -> Iterator[pb.ImportFeedbackRequest]:
        yield pb.ImportFeedbackRequest(header=pb.ImportFeedbackHeader(model=model))
        for number, message in enumerate(messages, 1):
            yield message
            advance("import", number / len(messages), {})

    with open_suite(address, key) as suite, progress_bar() as advance:
        answer = suite.send(suite.feedback.ImportFeedback, requests())
    counts = f"{answer.accepted_count} taken in, {answer.duplicate_count} were there already"
    say(out, f"{counts}, {answer.rejected_count} refused")
    for each in answer.rejections[:SHOWN_REJECTIONS]:
        say(out, f"  {each.client_id or f'number {each.index + 1}'}: {each.message}")


def export_file(
    out: Console, address: str, key: str, model: str, form: str, images: bool, after: int, to: Path | None
) -> None:
    """Write all that was said of pictures of *model* to the file *to*, or to standard output where it is None.

    Args:
        out: Where it is told that it is done.
        address: Of the suite.
        key: Of the caller.
        model: Name of the model.
        form: `json-lines` or `label-studio`.
        images: Whether the pictures themselves are in it.
        after: Only pictures of higher numbers.
        to: File, which is there whole or not at all.

    Raises:
        PredictionError: The suite refuses it or does not answer.
    """
    kind = pb.ExportFeedbackRequest.Format.Value(f"FORMAT_{form.replace('-', '_').upper()}")
    request = pb.ExportFeedbackRequest(model=model, format=kind, with_images=images, after_observation_id=after)
    with open_suite(address, key) as suite:
        answers = suite.receive(suite.feedback.ExportFeedback, request)
        first = next(answers, pb.ExportFeedbackResponse())  # a refusal comes here, before the file is touched
        pieces = chain((first,), answers)
        if to is None:
            for each in pieces:
                sys.stdout.buffer.write(each.chunk)
            sys.stdout.buffer.flush()
            return
        with replacing(to) as file:
            for each in pieces:
                file.write(each.chunk)
    say(out, f"{to.stat().st_size:,} bytes in {to}")


def _read(file: Path) -> list[pb.ImportFeedbackRequest]:
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8: {error}; encode it") from error
    if text.lstrip().startswith("["):
        tasks = read_json(text, str(file))
    elif (task := _lone_task(text)) is not None:
        tasks = [task]
    else:
        return [_message(each) for each in read_lines(text)]
    return [pb.ImportFeedbackRequest(label_studio_json=json.dumps(each).encode()) for each in tasks]


def _lone_task(text: str) -> dict[str, Any] | None:
    """Return the task of Label Studio that *text* is; None for lines of JSON."""
    try:
        found = read_json(text, "it")
    except InvalidInput:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("data"), dict) else None


def _message(word: NewFeedback) -> pb.ImportFeedbackRequest:
    if word.observation and word.label and not (word.prediction_id or word.image):
        return _task(word)
    message = pb.SendFeedbackRequest(
        prediction_id=word.prediction_id, comment=word.comment, image=word.image, model=word.model
    )
    if word.correct is None:
        message.label = word.label
    else:
        message.correct = word.correct
    return pb.ImportFeedbackRequest(feedback=message)


def _task(word: NewFeedback) -> pb.ImportFeedbackRequest:
    """Return the word on a picture that came without a prediction: only tasks name one by its number."""
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [word.label]}}
    data = {"observation": word.observation, "model": word.model}
    task = {"data": data, "annotations": [{"result": [choice]}]}
    return pb.ImportFeedbackRequest(label_studio_json=json.dumps(task).encode())
