"""Reviews on the command line, at the real feedback service."""

import grpc
import pytest

from aimass.client import PredictionError
from aimass.trainer.v1 import feedback_pb2 as pb
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from services.common.errors import InvalidInput
from tests.trainer.contracts.collecting import Component
from tests.trainer.feedback.conftest import captured, pictures, prediction_id

PICTURES = pictures(3)


@pytest.fixture
async def pets(serve, tmp_path):
    """The address of a service with three captured pictures, of the second of which something was said."""
    made = []

    def make(stop):
        made.append(Component(tmp_path, stop))
        return made[0]

    served = await serve(make)
    items = [captured(number, image) for number, image in enumerate(PICTURES)]
    made[0].intake.take(items)
    await FeedbackServiceStub(served.channel).SendFeedback(
        pb.SendFeedbackRequest(prediction_id=prediction_id(1), label="unicorn")
    )
    return served.address


async def rows(typed, address, *arguments):
    listed = (await typed("review", *arguments, "--address", address)).splitlines()
    assert listed[-1].endswith("of pets wait for a reviewer")
    return [line.split() for line in listed[1:-1]]


async def test_pictures_are_listed_newest_first_with_what_was_said(typed, pets):
    listed = await rows(typed, pets, "pets")

    assert [row[0] for row in listed] == ["3", "2", "1"]
    assert listed[0][1] == "captured"
    assert listed[1][1] == "proposed"
    assert listed[0][2:5] == ["hidden", "-", "hidden"]  # a draw that no reviewer has decided on
    assert listed[1][2:6] == ["unicorn", "100%", "1", "cat"]
    assert "train," in listed[0]
    await typed("review", "decide", "3", "--label", "dog", "--address", pets)
    decided = (await rows(typed, pets, "pets", "--state", "accepted"))[0]
    assert decided[2:7] == ["dog", "100%", "1", "cat", "50%"]


async def test_a_queue_has_its_order_states_and_length(typed, pets):
    assert [row[0] for row in await rows(typed, pets, "pets", "--order", "drawn", "--limit", "2")] == ["1", "3"]
    assert [row[0] for row in await rows(typed, pets, "show", "pets", "--state", "proposed")] == ["2"]
    assert await rows(typed, pets, "pets", "--state", "accepted") == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--label", "dog"], "picture 1 is accepted as dog"),
        (["--reject"], "picture 1 is rejected"),
        (["--undecidable"], "picture 1 is "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_decision_is_told_and_leaves_the_queue(typed, pets, arguments, told):
    decided = await typed("review", "decide", "1", *arguments, "--address", pets)

    assert decided.startswith(told)
    assert "1" not in [row[0] for row in await rows(typed, pets, "pets", "--order", "drawn")]


async def test_a_refusal_is_the_services_sentence(typed, pets):
    with pytest.raises(PredictionError, match="picture 9 is unknown"):
        await typed("review", "decide", "9", "--reject", "--address", pets)
    with pytest.raises(PredictionError, match="what others say of it must not decide") as caught:
        await typed("review", "decide", "1", "--release", "--address", pets)

    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT.name


@pytest.mark.parametrize("arguments", [[], ["--reject", "--release"], ["--label", "dog", "--reject"]], ids=" ".join)
async def test_what_decides_nothing_or_two_things_is_not_sent(typed, pets, arguments):
    with pytest.raises(InvalidInput, match="give one of --label LABEL, --reject, --undecidable and --release"):
        await typed("review", "decide", "1", *arguments, "--address", pets)


async def test_a_reviewer_sees_the_picture(typed, pets, tmp_path):
    told = await typed("review", "picture", "3", "-o", tmp_path / "picture", "--address", pets)

    assert told == f"picture 3, PNG, in {tmp_path / 'picture'}\n"
    assert (tmp_path / "picture").read_bytes() == PICTURES[2]
