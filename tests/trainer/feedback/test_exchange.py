"""Feedback as files, there and back."""

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidInput, NotFound
from services.common.identity import OWNER, Caller, Scope
from services.trainer.data.blobs import Blobs
from services.trainer.feedback.exchange import (
    export,
    read_label_studio,
    read_lines,
    write_label_studio,
    write_lines,
)
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.voting import NewFeedback, Voting
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import Groups, captured, pictures, prediction_id

ANN = Caller("ann", frozenset({Scope.FEEDBACK}))


def task(observation: int, label: str = "cat") -> dict[str, object]:
    return {
        "data": {"observation": observation},
        "annotations": [{"result": [{"value": {"choices": [label]}}]}],
    }


@pytest.fixture
def voting(database: Database, blobs: Blobs, intake: Intake, sifter: Sifter, policies: dict[str, Groups]) -> Voting:
    """Of three captured pictures one has a vote, one another two; a fourth came with its vote."""
    intake.take([captured(number, image) for number, image in enumerate(pictures(3))])
    taking = Voting(database, blobs.folder, lambda name: policies[name], sifter)
    taking.send(ANN, NewFeedback(prediction_id(0), label="dog", comment="so \N{DOG FACE}"))
    taking.send(ANN, NewFeedback(prediction_id(2), label="yak"))
    taking.send(OWNER, NewFeedback(prediction_id(2), label="cow"))
    taking.send(ANN, NewFeedback(model="pets", label="dog", image=pictures(1, 5)[0]))
    return taking


def test_what_was_said_is_exported_in_the_order_of_arrival(voting: Voting, database: Database, blobs: Blobs) -> None:
    text = b"".join(write_lines(export(database, blobs.folder, "pets"))).decode()

    lines = [json.loads(line) for line in text.splitlines()]
    assert [each["observation"] for each in lines] == [1, 3, 4]
    assert [each["state"] for each in lines] == ["PENDING", "ACCEPTED", "PENDING"]
    assert [[vote["label"] for vote in each["votes"]] for each in lines] == [["dog"], ["yak", "cow"], ["dog"]]
    assert lines[0]["votes"][0]["comment"] == "so \N{DOG FACE}"
    assert [(each["label"], each["label_probability"] > 0) for each in lines] == [
        ("", False), ("cow", True), ("dog", True),
    ]  # fmt: skip
    assert (lines[0]["predicted_label"], lines[0]["prediction_ids"]) == ("cat", [prediction_id(0)])
    assert "image" not in lines[0]
    assert [each.observation.number for each in export(database, blobs.folder, "pets", 1)] == [3, 4]
    with pytest.raises(NotFound, match="model 'birds' is unknown"):
        list(export(database, blobs.folder, "birds"))


@pytest.mark.parametrize("with_images", [False, True])
def test_lines_are_read_as_the_words_that_they_hold(
    voting: Voting, database: Database, blobs: Blobs, with_images: bool
) -> None:
    """But for the label of a draw that no reviewer has decided on: whoever imports it may be trusted."""
    text = b"".join(write_lines(export(database, blobs.folder, "pets", with_images=with_images))).decode()

    said = list(read_lines(text))

    assert [each.label for each in said] == ["cow", "dog"]
    assert [each.prediction_id for each in said] == [prediction_id(2), ""]
    assert {each.model for each in said} == {"pets"}
    assert [bool(each.image) for each in said] == [with_images] * 2
    assert [voting.send(ANN, each).observation for each in said] == [3, 4]


def test_label_studio_gets_tasks_and_gives_them_back(voting: Voting, database: Database, blobs: Blobs) -> None:
    text = b"".join(write_label_studio(export(database, blobs.folder, "pets", with_images=True))).decode()
    tasks = json.loads(text)
    blind, decided = tasks[:2]
    assert (blind["predictions"], blind["annotations"]) == ([], [])  # a draw that no reviewer has decided on
    assert [each["result"][0]["value"]["choices"] for each in decided["annotations"]] == [["yak"], ["cow"]]
    tasks[0]["annotations"] = [
        {"updated_at": "2026-02-01", "result": [{"type": "choices", "value": {"choices": ["cow"]}}]},
        {"updated_at": "2026-03-01", "was_cancelled": True, "result": []},
        {"updated_at": "2026-01-01", "result": [{"type": "choices", "value": {"choices": ["cat"]}}]},
    ]
    tasks[1]["annotations"] = []

    said = [each for each in read_label_studio(json.dumps(tasks)) if isinstance(each, NewFeedback)]

    assert tasks[2]["data"]["image"].startswith("data:image/png;base64,")
    assert tasks[1]["predictions"][0]["result"][0]["value"] == {"choices": ["cat"]}
    assert tasks[2]["predictions"] == []
    assert [(each.label, each.observation, each.prediction_id) for each in said] == [
        ("cow", 1, prediction_id(0)),
        ("dog", 4, ""),
    ]
    assert said[1].image[:4] == b"\x89PNG"
    assert voting.send(OWNER, said[1]).observation == 4
    assert next(read_label_studio(json.dumps(tasks[2]))) == said[1]


def test_what_ends_a_line_elsewhere_may_be_in_a_comment(
    voting: Voting, intake: Intake, database: Database, blobs: Blobs
) -> None:
    comment = "one\u2028two\u2029three\x85four\nfive\rsix"
    voting.send(OWNER, NewFeedback(prediction_id(0), label="dog", comment=comment))
    text = b"".join(write_lines(export(database, blobs.folder, "pets"))).decode()

    assert json.loads(text.split("\n")[0])["votes"][-1]["comment"] == comment
    assert [each.label for each in read_lines(text)] == ["dog", "cow", "dog"]


def test_each_task_fails_alone() -> None:
    said = list(read_label_studio(json.dumps([task(1), 5, task(2**63), task(2)])))

    assert [each.observation if isinstance(each, NewFeedback) else each.message[:18] for each in said] == [
        1, "task 2 is no task ", "observation of tas", 2,
    ]  # fmt: skip


def test_nothing_said_is_an_empty_file(database: Database, blobs: Blobs, intake: Intake) -> None:
    assert b"".join(write_lines(export(database, blobs.folder, "pets"))) == b""
    assert json.loads(b"".join(write_label_studio(export(database, blobs.folder, "pets")))) == []


def test_a_file_that_is_gone_or_damaged_is_exported_without_it(
    voting: Voting, database: Database, blobs: Blobs
) -> None:
    lines = [each.observation for each in export(database, blobs.folder, "pets")]
    blobs.remove(lines[0].content_digest)
    blobs.path(lines[1].content_digest).write_bytes(b"corrupt")

    assert [bool(each.image) for each in export(database, blobs.folder, "pets", with_images=True)] == [
        False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the file is not JSON"),
        ("[1]", "task 1 is no task of Label Studio: it has no data; export tasks as JSON"),
        ('[{"data": {}}, {"data": 3}]', "task 2 is no task"),
        (
            '{"data": {"image": "data:image/png;base64,?"}, "annotations": [{"result": [{"value": '
            '{"choices": ["cat"]}}]}]}',
            "the image of task 1 is not base64",
        ),
        ("[" * 100_000, "the file is not JSON"),
        (json.dumps(task(9223372036854775808)), "observation of task 1 is 9223372036854775808; give 1 to 9223372036"),
        (json.dumps(task(-1)), "observation of task 1 is -1; give 1 to"),
        (json.dumps(task(1, "\ud800")), "the file is not JSON"),
        ("9" * 5_000, "the file is not JSON"),
    ],
)
def test_what_is_no_file_of_label_studio_is_refused(text: str, words: str) -> None:
    refused = [each for each in read_label_studio(text) if isinstance(each, InvalidInput)]

    assert [each.reason for each in refused] == ["MALFORMED"] * len(refused)
    assert words in refused[-1].message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\nx", "line 3 is not JSON"),
        ("[]", "line 1 is JSON, and no object; write one object"),
        (f'{{"label": "cat", "observation": {10**30}}}', f"observation of line 1 is {10**30}; give 1 to"),
        ('{"label": "\\ud800"}', "line 1 is not JSON"),
    ],
)
def test_what_are_no_lines_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        list(read_lines(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["data", "annotations", "result", "value", "choices", "image", "label", "observation", "correct"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60)
@given(JSON)
@example({"label": "cat", "prediction_ids": True})
@example({"data": {}, "annotations": [{"result": 3}, {"result": [{"value": {"choices": [[]]}}]}]})
def test_any_json_is_read_or_refused(found: object) -> None:
    text = json.dumps(found)
    said = [each for each in read_label_studio(text) if isinstance(each, NewFeedback)]
    with contextlib.suppress(InvalidInput):
        said += read_lines(text)
    assert all(isinstance(each.label, str) and isinstance(each.prediction_id, str) for each in said)
    assert all(0 <= each.observation < 2**63 for each in said)
