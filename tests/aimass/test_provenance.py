"""Traces and deletions on the command line, at a service that answers as it was told to."""

import pytest

from aimass.trainer.v1 import loop_pb2 as pb
from tests.aimass.loop_service import END, START


async def test_a_prediction_is_followed_to_samples_of_users_and_of_the_base_set(loop, told):
    theirs = pb.TracedSample(sample_id=12, label="cat", contributor="ann", similarity=0.98765)
    theirs.time.FromSeconds(START)
    told.trace = pb.TracePredictionResponse(
        model="pets",
        version=4,
        graph_digest="sha256:1",
        run_id="loop-7",
        snapshot="abc",
        samples=[theirs, pb.TracedSample(base_sample="train/17", label="dog", similarity=0.5)],
        tainted=True,
    )
    lines = (await loop("trace", "f" * 32, "--count", "2")).splitlines()

    assert told.asked == [pb.TracePredictionRequest(prediction_id="f" * 32, nearest_count=2)]
    assert lines[:3] == [
        f"{'f' * 32} was answered by pets, version 4 (sha256:1)",
        "run loop-7, samples abc",
        "that version has learnt what was deleted since",
    ]
    assert [line.split() for line in lines[4:]] == [
        ["12", "cat", "ann", "2023-11-14", "22:13", "0.988"],
        ["train/17", "dog", "base", "set", "-", "0.500"],
    ]


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["sample", "3"], pb.DeleteSampleRequest(observation_id=3, request_id="forget-1")),
        (["contributor", "ann"], pb.DeleteContributorRequest(contributor="ann", request_id="forget-1")),
    ],
    ids=["sample", "contributor"],
)
async def test_what_is_deleted_is_asked_for_first(loop, told, arguments, request_):
    told.deletion.tainted_versions.extend([4, 5])
    told.deletion.tainted_runs.append("loop-7")
    told.deletion.deadline.FromSeconds(END)
    printed = await loop("delete", *arguments, "--request-id", "forget-1", answers="y\n")

    assert told.asked == [request_]
    assert printed.splitlines()[-3:] == [
        "deletion forget-1 is retraining; `aimass loop deletion forget-1` tells how far it is",
        "versions that have learnt it, which go by 2023-11-14 22:23: 4, 5",
        "runs that have learnt it: loop-7",
    ]


@pytest.mark.parametrize("arguments", [["sample", "3"], ["contributor", "ann"]], ids=" ".join)
async def test_a_no_deletes_nothing_and_a_yes_may_be_given_before(loop, told, arguments):
    with pytest.raises(AssertionError, match="Aborted"):
        await loop("delete", *arguments, answers="n\n")
    assert told.asked == []
    await loop("delete", *arguments, "--yes")

    (asked,) = told.asked
    assert len(asked.request_id) >= 8


async def test_a_deletion_tells_what_was_erased(loop, told):
    told.deletion.state = pb.Deletion.STATE_COMPLETED
    told.deletion.report_json = '{"pictures": 3}'
    printed = await loop("deletion", "forget-1")

    assert told.asked == [pb.GetDeletionRequest(id="forget-1")]
    assert "is completed" in printed
    assert '"pictures": 3' in printed
