"""Predictions at a real gateway: which are captured, and that this changes nothing in them."""

import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.trainer.v1 import capture_pb2
from tests.end_to_end.pictures import plain
from tests.end_to_end.suite import eventually
from tests.gateway.capturing import POLICY
from tests.gateway.door import LearningTrainer, open_door

RED, BLUE = plain((255, 0, 0)), plain((0, 0, 255))
ELSEWHERE = (("x-forwarded-for", "192.0.2.7"),)


async def predicted(door, *images, metadata=(), **fields):
    request = pb.PredictRequest(**{"model": "tiny", "images": images} | fields)
    return await door.stub.Predict(request, metadata=metadata)


async def test_each_image_is_captured_by_itself_with_what_was_answered(door, tiny_classifier):
    response = await predicted(door, RED, b"no image", BLUE, top=2)
    await door.trainer.until(lambda: len(door.trainer.received) == 2)

    good = [response.results[place].prediction for place in (0, 2)]
    assert [each.captured for each in good] == [True, True]
    for image, answer, captured in zip((RED, BLUE), good, door.trainer.received, strict=True):
        assert (captured.image, captured.prediction_id) == (image, answer.prediction_id)
        assert [(each.label, each.probability) for each in captured.labels] == [
            (each.label, each.probability) for each in answer.labels
        ]
        assert (captured.model, captured.version) == ("tiny", 1)
        assert captured.preprocess_digest == tiny_classifier.manifest.preprocess.digest


async def test_who_asked_is_told_by_name_or_as_anonymous_or_not_at_all(door):
    await door.trainer.give("am_anna", "anna", "predict")
    await eventually(lambda: door.access_knows("am_anna"))

    for metadata in ((), ELSEWHERE, (*ELSEWHERE, ("authorization", "Bearer am_anna"))):
        await predicted(door, RED, metadata=metadata)
    await door.trainer.until(lambda: len(door.trainer.received) == 3)

    assert [each.contributor for each in door.trainer.received] == ["anonymous", "", "anna"]


async def test_a_streams_predictions_are_captured_in_the_name_of_who_streams(door):
    await door.trainer.give("am_anna", "anna", "predict")
    await eventually(lambda: door.access_knows("am_anna"))
    requests = [pb.PredictStreamRequest(request=pb.PredictRequest(model="tiny", images=[RED])) for _ in range(3)]

    call = door.stub.PredictStream(iter(requests), metadata=(("authorization", "Bearer am_anna"),))
    answers = [each async for each in call]
    await door.trainer.until(lambda: len(door.trainer.received) == 3)

    assert all(each.response.results[0].prediction.captured for each in answers)
    assert {each.contributor for each in door.trainer.received} == {"anna"}


async def test_over_http_it_is_told_too(door):
    answer = await door.http.post("/v1/models/tiny/predict", content=RED, headers=dict(ELSEWHERE))
    await door.trainer.until(lambda: door.trainer.received)

    (captured,) = door.trainer.received
    assert answer.json()["captured"] is True
    assert (captured.prediction_id, captured.image) == (answer.json()["prediction_id"], RED)
    assert captured.contributor == ""


async def test_what_is_not_drawn_is_told_to_be_not_captured(open_gateway):
    trainer = LearningTrainer()
    trainer.policies = capture_pb2.CapturePolicies(policies=[capture_pb2.CapturePolicy(model="tiny")])
    door = await open_gateway(trainer)

    response = await predicted(door, RED)
    over_http = await door.http.post("/v1/models/tiny/predict", content=RED)

    assert not response.results[0].prediction.captured
    assert over_http.json()["captured"] is False


@pytest.mark.parametrize("queue", [1, 64 * 1024])
async def test_a_trainer_that_is_away_changes_nothing_but_whether_it_is_captured(open_gateway, queue):
    door = await open_gateway(capture_queue_bytes=queue)
    before = await predicted(door, RED)
    await door.trainer.stop()

    answers = [await predicted(door, RED) for _ in range(5)]

    for each in answers:
        assert each.results[0].prediction.labels == before.results[0].prediction.labels
        assert each.results[0].prediction.captured == (queue > 1)


async def test_what_is_captured_is_with_the_trainer_when_the_gateway_has_stopped(serve, inference):
    trainer = LearningTrainer()
    trainer.policies = capture_pb2.CapturePolicies(policies=[POLICY])
    trainer.slow = True
    async with open_door(serve, inference, trainer) as door:
        captured = {(await predicted(door, RED)).results[0].prediction.prediction_id for _ in range(4)}
        await trainer.release()
        await door.capture.close(60)

    assert set(trainer.ids) == captured
