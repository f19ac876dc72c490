"""Feedback on the command line: single words at a real gateway, files at the real feedback service."""

import base64
import json

import pytest

from aimass.client import PredictionError
from aimass.trainer.v1 import feedback_pb2
from services.common.errors import InvalidInput
from services.trainer.data.observing import State
from services.trainer.feedback import trust
from services.trainer.feedback.review import Reviewing
from tests.end_to_end.pictures import plain
from tests.gateway.door import LearningTrainer, open_door
from tests.trainer.contracts.collecting import Component
from tests.trainer.feedback.conftest import captured, pictures, prediction_id

RED = plain((255, 0, 0))


@pytest.fixture
async def door(serve, inference):
    async with open_door(serve, inference, LearningTrainer()) as door:
        yield door


@pytest.fixture
async def pets(serve, tmp_path):
    """The feedback service with three captured pictures of `pets`, and its address."""
    made = []

    def make(stop):
        made.append(Component(tmp_path, stop))
        return made[0]

    served = await serve(make)
    made[0].intake.take([captured(number, image) for number, image in enumerate(pictures(3))])
    return made[0], served.address


def views(component):
    return {number: Reviewing(component.database, component.blobs.folder, None).read(number) for number in (1, 2, 3)}


def labels(component):
    return {number: [each.label for each in view.votes] for number, view in views(component).items()}


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        (["--label", "blue"], {"label": "blue"}),
        (["--right"], {"correct": True}),
        (["--wrong", "--comment", "hm"], {"correct": False, "comment": "hm"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_one_word_is_sent_and_what_became_of_it_is_told(typed, door, arguments, verdict):
    told = await typed("feedback", "send", "abc", *arguments, "--address", door.address)

    assert told == "pending (NEEDS_VOTES): it counts once enough others say the same\n"
    assert door.trainer.heard[0].request == feedback_pb2.SendFeedbackRequest(prediction_id="abc", **verdict)


@pytest.mark.parametrize(
    ("state", "reason", "meaning"),
    [
        (State.PENDING, trust.WAITS_FOR_REVIEW, "a reviewer says the same"),
        (State.PENDING, trust.NEEDS_LABEL, "somebody says what it is"),
        (State.PENDING, trust.VOTES_DIFFER, "others say something else"),
        (State.PENDING, trust.WAITS_FOR_EMBEDDING, "compared with similar pictures"),
        (State.REJECTED, trust.UNDECIDABLE, "nobody can tell what it is"),
        (State.REJECTED, "", "a reviewer did not want the picture"),
    ],
)
async def test_what_a_picture_waits_for_is_told_by_the_reason_of_its_state(typed, door, state, reason, meaning):
    door.trainer.state = feedback_pb2.Observation.State.Value(f"STATE_{state}")
    door.trainer.state_reason = reason

    assert meaning in await typed("feedback", "send", "abc", "--label", "red", "--address", door.address)


async def test_the_image_goes_along_where_it_is_named(typed, door, tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    arguments = ("--label", "red", "--image", tmp_path / "red.png", "--model", "tiny", "--address", door.address)
    await typed("feedback", "send", "abc", *arguments)

    (heard,) = door.trainer.heard
    assert (heard.request.image, heard.request.model) == (RED, "tiny")


@pytest.mark.parametrize("arguments", [[], ["--right", "--wrong"], ["--right", "--label", "red"]], ids=" ".join)
async def test_what_says_nothing_or_two_things_is_not_sent(typed, door, arguments):
    with pytest.raises(InvalidInput, match="give one of --label LABEL, --right and --wrong"):
        await typed("feedback", "send", "abc", *arguments, "--address", door.address)

    assert door.trainer.heard == []


async def test_a_refusal_is_the_services_sentence(typed, door):
    with pytest.raises(PredictionError, match="prediction 'unknown' was not captured; send its image and model"):
        await typed("feedback", "send", "unknown", "--right", "--address", door.address)


async def test_lines_are_imported_and_those_that_are_refused_are_named(typed, pets, tmp_path):
    component, address = pets
    (new,) = pictures(1, seed=7)
    lines = [
        {"prediction_id": prediction_id(0), "label": "dog", "comment": "a dog"},
        {"prediction_id": prediction_id(0), "label": "dog", "comment": "a dog"},
        {"observation": 2, "label": "cow"},
        {"prediction_ids": [prediction_id(2)], "correct": True},
        {"prediction_id": "f" * 32, "label": "dog"},
        {"image": base64.b64encode(new).decode(), "model": "pets", "label": "cat"},
        {"prediction_id": prediction_id(1)},
    ]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = (await typed("feedback", "import", "pets", tmp_path / "words.jsonl", "--address", address)).splitlines()

    assert told[0] == "4 taken in, 1 were there already, 1 refused"
    assert told[1].startswith(f"  {'f' * 32}: prediction '{'f' * 32}'")
    assert labels(component) == {1: ["dog"], 2: ["cow"], 3: ["cat"]}


async def test_tasks_of_label_studio_are_imported(typed, pets, tmp_path):
    component, address = pets
    choice = {"type": "choices", "value": {"choices": ["dog"]}}
    tasks = [{"data": {"observation": number}, "annotations": [{"result": [choice]}]} for number in (1, 3, 99)]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    told = await typed("feedback", "import", "pets", tmp_path / "tasks.json", "--address", address)

    assert told.startswith("2 taken in, 0 were there already, 1 refused\n  number 3: ")
    assert labels(component) == {1: ["dog"], 2: [], 3: ["dog"]}


@pytest.mark.parametrize("indent", [None, 2])
async def test_a_lone_task_of_label_studio_is_imported(typed, pets, tmp_path, indent):
    component, address = pets
    choice = {"type": "choices", "value": {"choices": ["dog"]}}
    task = {"data": {"observation": 2}, "annotations": [{"result": [choice]}]}
    (tmp_path / "task.json").write_text(json.dumps(task, indent=indent))
    told = await typed("feedback", "import", "pets", tmp_path / "task.json", "--address", address)

    assert told == "1 taken in, 0 were there already, 0 refused\n"
    assert labels(component)[2] == ["dog"]


@pytest.mark.parametrize("text", ['{"label": "dog"}\nno JSON', '[{"data": ', "[1, 2]\n{}", b"\xff"])
async def test_of_a_malformed_file_nothing_is_sent(typed, pets, tmp_path, text):
    component, address = pets
    (tmp_path / "words").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput, match=r"JSON|UTF-8"):
        await typed("feedback", "import", "pets", tmp_path / "words", "--address", address)

    assert labels(component) == {1: [], 2: [], 3: []}


@pytest.mark.parametrize("form", ["json-lines", "label-studio"])
async def test_what_was_exported_can_be_imported_elsewhere(typed, pets, serve, tmp_path, form):
    _, address = pets
    lines = [{"prediction_id": prediction_id(number), "label": "dog"} for number in (0, 1)]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)))
    await typed("feedback", "import", "pets", tmp_path / "words.jsonl", "--address", address)
    to = tmp_path / "export"
    told = await typed("feedback", "export", "pets", "--format", form, "--images", "-o", to, "--address", address)
    printed = await typed("feedback", "export", "pets", "--format", form, "--images", "--address", address)

    (tmp_path / "other").mkdir()
    made = []

    def make(stop):
        made.append(Component(tmp_path / "other", stop))
        return made[0]

    other = await serve(make)
    made[0].intake.take([captured(number, image) for number, image in enumerate(pictures(3))])
    again = await typed("feedback", "import", "pets", to, "--address", other.address)

    assert told == f"{to.stat().st_size:,} bytes in {to}\n"
    assert printed == to.read_text()
    assert again.startswith("2 taken in")
    assert labels(made[0]) == {1: ["dog"], 2: ["dog"], 3: []}


async def test_a_file_is_left_alone_when_the_export_is_refused(typed, pets, tmp_path):
    _, address = pets
    (tmp_path / "export").write_text("of before")
    with pytest.raises(PredictionError, match="'dogs' is unknown"):
        await typed("feedback", "export", "dogs", "-o", tmp_path / "export", "--address", address)

    assert (tmp_path / "export").read_text() == "of before"
    assert [each.name for each in tmp_path.glob("export*")] == ["export"]
