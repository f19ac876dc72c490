"""The capture contract over a real server: header, policies, receipts, counts, and how it ends."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select

from aimass.trainer.v1 import capture_pb2 as pb
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceStub
from services.common.identity import Scope
from services.trainer.contracts import capture
from services.trainer.data.tables import PredictionRow
from services.trainer.feedback.counting import VersionCounts, sum_counts
from services.trainer.feedback.policy import CapturePolicy
from tests.conftest import Serve
from tests.trainer.contracts.collecting import Component, called_by, refused
from tests.trainer.feedback.conftest import Groups, pictures, prediction_id

HEADER = pb.CaptureRequest(header=pb.CaptureHeader(gateway_id="gateway"))


@pytest.fixture
async def parts(serve: Serve, tmp_path: Path) -> tuple[Component, CaptureServiceStub, Any]:
    made: list[Component] = []

    def make(stop: object) -> Component:
        made.append(Component(tmp_path, stop))  # type: ignore[arg-type]
        return made[0]

    served = await serve(make)
    return made[0], CaptureServiceStub(served.channel), served.stop


Parts = tuple[Component, CaptureServiceStub, Any]


def prediction(sequence: int, image: bytes, **changes: Any) -> pb.CaptureRequest:
    fields: dict[str, Any] = {
        "sequence": sequence,
        "prediction_id": prediction_id(sequence),
        "model": "pets",
        "version": 2,
        "traffic_generation": 5,
        "preprocess_digest": "sha256:x",
        "image": image,
        "labels": [pb.CapturedLabel(label="cat", probability=0.5)],
        "contributor": "ann",
        "time": Timestamp(seconds=1_700_000_000, nanos=5_000_000),
        "strategy": pb.CapturedPrediction.STRATEGY_RANDOM,
        "probability": 0.1,
    }
    return pb.CaptureRequest(prediction=pb.CapturedPrediction(**(fields | changes)))


async def read_all(call: Any) -> list[pb.CaptureResponse]:
    return [response async for response in call]


async def test_predictions_are_kept_and_receipted(parts: Parts) -> None:
    component, stub, _ = parts
    requests = [prediction(number, image) for number, image in enumerate(pictures(70), 1)]
    requests.insert(30, prediction(500, b"hello", model="pets"))
    requests[30].prediction.sequence = 31
    for number, request in enumerate(requests, 1):
        request.prediction.sequence = number

    responses = await read_all(stub.Capture(iter([HEADER, *requests])))

    receipts = [each.receipt for each in responses[1:]]
    policy = responses[0].policies.policies[0]
    assert (policy.model, policy.paused_reason, list(policy.rare_labels)) == ("pets", "", [])
    assert (policy.random_share, policy.burst) == (0.1, 50)
    assert [each.sequence for each in receipts] == sorted(each.sequence for each in receipts)
    assert receipts[-1].sequence == 71
    assert [(each.sequence, each.reason) for receipt in receipts for each in receipt.refused] == [(31, "NOT_AN_IMAGE")]
    with component.database.read() as session:
        rows = list(session.scalars(select(PredictionRow).order_by(PredictionRow.draw)))
    assert [row.draw for row in rows] == list(range(1, 71))
    assert (rows[0].version, rows[0].generation, rows[0].contributor) == (2, 5, "ann")
    assert (rows[0].time, rows[0].labels) == ("2023-11-14T22:13:20.005Z", [["cat", 0.5]])
    assert set(component.woken) == {"pets"}


async def test_what_is_sent_again_is_receipted_again_and_kept_once(parts: Parts) -> None:
    component, stub, _ = parts
    requests = [prediction(number, image) for number, image in enumerate(pictures(3), 1)]
    await read_all(stub.Capture(iter([HEADER, *requests])))
    component.woken.clear()

    again = await read_all(stub.Capture(iter([HEADER, *requests])))

    assert again[-1].receipt.sequence == 3
    assert component.woken == []
    with component.database.read() as session:
        assert len(list(session.scalars(select(PredictionRow)))) == 3


async def test_the_last_counts_are_kept(parts: Parts) -> None:
    component, stub, _ = parts

    def counts(answered: int) -> pb.CaptureRequest:
        of = {"captured_counts": {"RANDOM": 2}, "dropped_counts": {"BUDGET": 1}}
        each = pb.CaptureCount(model="pets", version=2, answered_count=answered, **of)
        return pb.CaptureRequest(counts=pb.CaptureCounts(counts=[each]))

    await read_all(stub.Capture(iter([HEADER, counts(5), counts(9)])))

    assert sum_counts(component.database, "pets") == [VersionCounts("pets", 2, 9, {"RANDOM": 2}, {"BUDGET": 1})]


async def test_a_new_policy_is_told_while_the_call_lasts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RULES_SECONDS", 0.01)
    component, stub, _ = parts
    call = stub.Capture()
    async with asyncio.timeout(30):
        await call.write(HEADER)
        await call.read()
        component.policy = Groups(capture=CapturePolicy(least_free_bytes=2**60))
        told = await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    assert told.policies.policies[0].paused_reason == "DISK_FULL"


async def test_a_prediction_without_a_time_is_refused_for_good(parts: Parts) -> None:
    _, stub, _ = parts
    image = pictures(1)[0]
    wrong = [
        prediction(1, image, time=None),
        prediction(2, image, time=Timestamp(seconds=2**60)),
        prediction(3, image, strategy=0),
        prediction(4, image, strategy=9),
    ]

    responses = await read_all(stub.Capture(iter([HEADER, *wrong])))

    refusals = [each.reason for response in responses[1:] for each in response.receipt.refused]
    assert refusals == ["MALFORMED"] * 4


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "the first message must be the header; nothing came: send the header first"),
        ([prediction(1, b"")], "the first message must be the header; prediction came"),
        ([HEADER, HEADER], "every message after the header must be a prediction or counts, and another one came"),
        ([pb.CaptureRequest(header=pb.CaptureHeader())], "gateway_id has 0 characters; give 1 to 64"),
    ],
    ids=["nothing", "no-header", "two-headers", "nobody"],
)
async def test_a_call_out_of_order_is_refused(parts: Parts, requests: list[pb.CaptureRequest], words: str) -> None:
    code, told = await refused(read_all(parts[1].Capture(iter(requests))))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in told


async def test_when_the_server_stops_what_came_is_receipted_first(parts: Parts) -> None:
    _, stub, stop = parts
    call = stub.Capture()
    async with asyncio.timeout(30):
        await call.write(HEADER)
        await call.read()
        await call.write(prediction(1, pictures(1)[0]))
        receipt = await call.read()
        stop.set()
        stop.set_drained()
        code, words = await refused(call.read())

    assert receipt.receipt.sequence == 1
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "send what was not answered again" in words


async def test_users_cannot_say_what_was_answered(parts: Parts) -> None:
    call = parts[1].Capture(iter([HEADER]), metadata=called_by("ann", Scope.PREDICT))

    assert (await refused(read_all(call)))[0] is grpc.StatusCode.PERMISSION_DENIED
