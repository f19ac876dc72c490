"""What the client says of predictions, at a real gateway before a trainer that writes down what it is asked."""

import asyncio

import pytest

from aimass.client import AsyncClient, Client, Feedback, PredictionError
from aimass.trainer.v1 import capture_pb2, feedback_pb2
from tests.end_to_end.pictures import plain
from tests.end_to_end.suite import eventually
from tests.gateway.door import LearningTrainer, open_door

RED = plain((255, 0, 0))


@pytest.fixture
async def door(serve, inference):
    async with open_door(serve, inference, LearningTrainer()) as door:
        yield door


def heard(door):
    (one,) = door.trainer.heard
    return one.request


async def test_a_prediction_says_whether_it_was_captured(door):
    async with AsyncClient(door.address) as client:
        captured = await client.predict(RED, "tiny")
        await door.trainer.tell(capture_pb2.CapturePolicy(model="tiny"))
        await eventually(lambda: not door.capture._samplers["tiny"].policy.random_share)

        assert captured.captured
        assert not (await client.predict(RED, "tiny")).captured


async def test_a_label_is_sent_for_a_prediction(door):
    async with AsyncClient(door.address) as client:
        prediction = await client.predict(RED, "tiny")
        answer = await client.send_feedback(prediction, "blue", comment="hm")

    assert answer == Feedback(state="pending", state_reason="NEEDS_VOTES", created=True)
    assert heard(door) == feedback_pb2.SendFeedbackRequest(
        prediction_id=prediction.prediction_id, label="blue", comment="hm", model="tiny"
    )


@pytest.mark.parametrize("captured", [True, False])
async def test_an_answer_that_was_not_captured_is_called_right_by_its_label(door, captured):
    async with AsyncClient(door.address) as client:
        if not captured:
            await door.trainer.tell(capture_pb2.CapturePolicy(model="tiny"))
            await eventually(lambda: not door.capture._samplers["tiny"].policy.random_share)
        prediction = await client.predict(RED, "tiny")
        await client.send_feedback(prediction, correct=True, image=RED)

    said = {"correct": True} if captured else {"label": prediction.label}
    assert prediction.captured is captured
    assert heard(door) == feedback_pb2.SendFeedbackRequest(
        prediction_id=prediction.prediction_id, image=RED, model="tiny", **said
    )


async def test_the_blocking_client_sends_the_same(door, tmp_path):
    (tmp_path / "red.png").write_bytes(RED)

    def send():
        with Client(door.address) as client:
            return client.send_feedback("abc", correct=False, image=tmp_path / "red.png", model="tiny")

    assert (await asyncio.to_thread(send)).state == "pending"
    assert heard(door) == feedback_pb2.SendFeedbackRequest(prediction_id="abc", correct=False, image=RED, model="tiny")


async def test_a_refusal_is_raised_with_its_sentence(door):
    async with AsyncClient(door.address) as client:
        with pytest.raises(PredictionError, match="send its image and model") as caught:
            await client.send_feedback("unknown", correct=True)

    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "NOT_FOUND")


@pytest.mark.parametrize("verdict", [{}, {"label": "red", "correct": True}])
async def test_what_says_nothing_or_two_things_is_not_sent(door, verdict):
    async with AsyncClient(door.address) as client:
        with pytest.raises(ValueError, match="give either the right label"):
            await client.send_feedback("abc", **verdict)


async def test_a_key_says_who_sends(door):
    await door.trainer.give("am_ben", "ben", "feedback", "predict")
    await eventually(lambda: door.access_knows("am_ben"))

    async with AsyncClient(door.address, key="am_ben") as client:
        await client.send_feedback(await client.predict(RED, "tiny"), correct=True)
        await client.models()
    await door.trainer.until(lambda: door.trainer.received)

    assert door.trainer.heard[0].caller.contributor == "ben"
    assert door.trainer.received[0].contributor == "ben"
