"""The data contract over a real server: tasks, samples, reports."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from prometheus_client.registry import Collector
from sqlalchemy import select

from aimass.trainer.v1 import data_pb2 as pb
from aimass.trainer.v1.data_pb2_grpc import DataServiceStub, add_DataServiceServicer_to_server
from services.common.identity import LOCAL, Caller, Scope, caller_metadata
from services.common.manifest import PreprocessSpec
from services.common.server import Service, StopSignal
from services.trainer.contracts import data
from services.trainer.contracts.data import DataServicer
from services.trainer.data.sources import DataSources
from services.trainer.data.tables import VoteRow
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.storage.database import Database
from tests.conftest import Serve, Served
from tests.trainer.contracts.collecting import delete_contributor
from tests.trainer.data.conftest import encoded, write_classes

SPEC = PreprocessSpec(input="image", width=8, height=8)
PETS = pb.CreateModelRequest(name="pets", labels=["cat", "dog"], preprocess_spec=SPEC.canonical_json())


class Component:
    """The contract with nothing else beside it."""

    def __init__(self, folder: Path, stop: StopSignal) -> None:
        self.database = Database(f"sqlite:///{folder / 'trainer.db'}")
        self.database.migrate()
        sources = DataSources(folder / "data", (folder,), self.database, folder / "blobs")
        self.servicer = DataServicer(self.database, sources, stop)

    @property
    def services(self) -> Sequence[Service]:
        descriptor = pb.DESCRIPTOR.services_by_name["DataService"]
        return (Service.of(descriptor, add_DataServiceServicer_to_server, self.servicer),)

    @property
    def collectors(self) -> Sequence[Collector]:
        return ()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.database.close()


@pytest.fixture
async def served(serve: Serve, tmp_path: Path) -> Served:
    return await serve(lambda stop: Component(tmp_path, stop))


@pytest.fixture
def component(served: Served) -> Component:
    assert isinstance(served.component, Component)
    return served.component


@pytest.fixture
def stub(served: Served) -> DataServiceStub:
    return DataServiceStub(served.channel)


def noise(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [encoded(Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8))) for _ in range(count)]


def header(model: str = "pets") -> pb.ImportSamplesRequest:
    return pb.ImportSamplesRequest(header=pb.ImportSamplesHeader(model=model))


def sample(image: bytes, label: str, **more: str) -> pb.ImportSamplesRequest:
    return pb.ImportSamplesRequest(sample=pb.ImportedSample(image=image, label=label, **more))


async def refused(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


async def test_a_model_is_created_got_and_listed(stub: DataServiceStub) -> None:
    created = (await stub.CreateModel(PETS)).model
    again = (await stub.CreateModel(PETS)).model

    assert again == created
    assert (await stub.GetModel(pb.GetModelRequest(name="pets"))).model == created
    assert list((await stub.ListModels(pb.ListModelsRequest())).models) == [created]
    assert (created.name, list(created.labels), list(created.sample_counts)) == ("pets", ["cat", "dog"], [0, 0])
    assert (created.preprocess_spec, created.preprocess_digest) == (SPEC.canonical_json(), SPEC.digest)
    assert created.create_time.seconds > 0


async def test_another_model_of_the_same_name_is_refused(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    other = pb.CreateModelRequest(name="pets", labels=["a", "b"], preprocess_spec=SPEC.canonical_json())

    code, words = await refused(stub.CreateModel(other))

    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "model 'pets' exists with labels cat, dog" in words


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.CreateModelRequest(name="a/b"), grpc.StatusCode.INVALID_ARGUMENT, "model name 'a/b' is not valid"),
        (pb.CreateModelRequest(name="a", labels=["x"]), grpc.StatusCode.INVALID_ARGUMENT, "has 1 labels"),
        (pb.CreateModelRequest(name="a", labels=["x", "y"]), grpc.StatusCode.INVALID_ARGUMENT, "spec is not valid"),
    ],
    ids=["name", "labels", "spec"],
)
async def test_a_malformed_model_is_refused(
    stub: DataServiceStub, request_: pb.CreateModelRequest, code: grpc.StatusCode, words: str
) -> None:
    found = await refused(stub.CreateModel(request_))

    assert found[0] is code
    assert words in found[1]


async def test_samples_are_imported_counted_and_listed(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    images = noise(150)
    labels = [("cat", "dog")[row % 2] for row in range(150)]
    requests = [sample(image, labels[row], client_id=f"{row}") for row, image in enumerate(images)]
    requests += [sample(images[0], "cat"), sample(images[1], "cat", client_id="wrong"), sample(b"hello", "dog")]

    response = await stub.ImportSamples(iter([header(), *requests]))

    assert (response.accepted_count, response.duplicate_count, response.rejected_count) == (150, 1, 2)
    assert [(each.index, each.client_id, each.reason) for each in response.rejections] == [
        (151, "wrong", "CONFLICTING_LABEL"),
        (152, "", "NOT_AN_IMAGE"),
    ]
    assert list((await stub.GetModel(pb.GetModelRequest(name="pets"))).model.sample_counts) == [75, 75]
    listed: list[pb.Sample] = []
    token = ""
    while not listed or token:
        page = await stub.ListSamples(pb.ListSamplesRequest(model="pets", page_size=40, page_token=token))
        listed += page.samples
        token = page.next_page_token
    assert [each.client_id for each in listed] == [str(row) for row in range(150)]
    assert (listed[1].label, listed[1].width, listed[1].height, listed[1].format) == ("dog", 7, 9, "PNG")
    assert listed[1].content_digest.startswith("sha256:")
    assert listed[1].create_time.seconds > 0


async def test_samples_tell_who_gave_them_and_which_pictures_they_are(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    first, second = noise(2)
    ann = caller_metadata(Caller("ann", frozenset(Scope)))

    await stub.ImportSamples(iter([header(), sample(first, "cat")]), metadata=[ann])
    await stub.ImportSamples(iter([header(), sample(second, "dog")]))

    listed = (await stub.ListSamples(pb.ListSamplesRequest(model="pets"))).samples
    assert [each.contributor for each in listed] == ["ann", ""]
    assert 0 < listed[0].observation_id < listed[1].observation_id


async def test_only_the_word_of_the_trusted_decides_in_an_import(component: Component, stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    create_key(component.database, "rex", [Scope.TRAIN], trusted=True)
    create_key(component.database, "eve", [Scope.TRAIN], trusted=False)
    callers = [
        None,
        caller_metadata(Caller("rex", frozenset({Scope.TRAIN}), trusted=True)),
        caller_metadata(Caller("eve", frozenset({Scope.TRAIN}), trusted=True)),  # not any more: the table decides
        caller_metadata(LOCAL),
    ]

    for image, caller in zip(noise(4), callers, strict=True):
        await stub.ImportSamples(iter([header(), sample(image, "cat")]), metadata=[caller] if caller else [])

    with component.database.read() as session:
        words = session.execute(select(VoteRow.contributor, VoteRow.trusted).order_by(VoteRow.number)).all()
    assert words == [("", True), ("rex", True), ("eve", False), ("anonymous", False)]
    set_contributor(component.database, "eve", blocked=True)
    code, sentence = await refused(stub.ImportSamples(iter([header(), sample(b"", "cat")]), metadata=[callers[2]]))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "what eve says is not taken" in sentence


@pytest.mark.parametrize(
    ("requests", "code", "words"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "the first message of an import must be its header; a message with not"),
        ([sample(b"", "cat")], grpc.StatusCode.INVALID_ARGUMENT, "a message with sample came: send the header"),
        ([header(), header()], grpc.StatusCode.INVALID_ARGUMENT, "every message after the header must be a sample"),
        ([header("birds")], grpc.StatusCode.NOT_FOUND, "model 'birds' is unknown; create it with CreateModel"),
    ],
    ids=["nothing", "no-header", "two-headers", "unknown-model"],
)
async def test_an_import_out_of_order_is_refused(
    stub: DataServiceStub, requests: list[pb.ImportSamplesRequest], code: grpc.StatusCode, words: str
) -> None:
    await stub.CreateModel(PETS)

    found = await refused(stub.ImportSamples(iter(requests)))

    assert found[0] is code
    assert words in found[1]


async def test_an_import_that_breaks_off_keeps_its_beginning_and_may_be_sent_again(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    requests = [header(), *(sample(image, "cat") for image in noise(70))]
    arrived = asyncio.Event()

    async def breaking() -> AsyncIterator[pb.ImportSamplesRequest]:
        for request in requests:
            yield request
        await arrived.wait()

    call = stub.ImportSamples(breaking())
    while not (await stub.ListSamples(pb.ListSamplesRequest(model="pets"))).samples:
        pass  # the first 64 are written as soon as they are there
    call.cancel()
    again = await stub.ImportSamples(iter(requests))

    assert (again.accepted_count, again.duplicate_count) == (6, 64)


async def test_an_import_ends_once_its_contributor_is_deleted(component: Component, stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    create_key(component.database, "rex", [Scope.TRAIN], trusted=True)
    images = noise(65)

    async def requests() -> AsyncIterator[pb.ImportSamplesRequest]:
        yield header()
        for image in images[:64]:
            yield sample(image, "cat")
        while not (await stub.ListSamples(pb.ListSamplesRequest(model="pets"))).samples:
            pass
        delete_contributor(component.database, "rex")
        yield sample(images[64], "cat")

    rex = caller_metadata(Caller("rex", frozenset({Scope.TRAIN}), trusted=True))
    code, sentence = await refused(stub.ImportSamples(requests(), metadata=[rex]))

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "what rex has given is deleted, and what was under way is not taken; begin again" in sentence
    with component.database.read() as session:
        assert len(list(session.scalars(select(VoteRow)))) == 64  # which the deletion removes


async def test_an_import_that_pauses_too_long_is_ended(stub: DataServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "IDLE_SECONDS", 0.05)
    await stub.CreateModel(PETS)
    never = asyncio.Event()

    async def pausing() -> AsyncIterator[pb.ImportSamplesRequest]:
        yield header()
        await never.wait()

    code, words = await refused(stub.ImportSamples(pausing()))

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no sample came for 0.05 seconds; send the import again" in words


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.ListSamplesRequest(model="birds"), grpc.StatusCode.NOT_FOUND, "model 'birds' is unknown"),
        (pb.ListSamplesRequest(model="pets", label="do"), grpc.StatusCode.INVALID_ARGUMENT, "did you mean 'dog'?"),
        (pb.ListSamplesRequest(model="pets", page_token="x"), grpc.StatusCode.INVALID_ARGUMENT, "page_token 'x'"),
    ],
    ids=["model", "label", "token"],
)
async def test_a_page_that_cannot_be_is_refused(
    stub: DataServiceStub, request_: pb.ListSamplesRequest, code: grpc.StatusCode, words: str
) -> None:
    await stub.CreateModel(PETS)

    found = await refused(stub.ListSamples(request_))

    assert found[0] is code
    assert words in found[1]


async def test_a_report_tells_of_imported_samples(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    await stub.ImportSamples(
        iter([header(), *(sample(image, ("cat", "dog")[row % 2]) for row, image in enumerate(noise(60)))])
    )

    response = await stub.GetDataReport(pb.GetDataReportRequest(dataset="model:pets"))

    report = json.loads(response.report_json)
    assert (report["dataset"], report["sample_count"], report["refusal"]) == ("model:pets", 60, "")
    assert response.report_html.startswith(b"<!doctype html>")


async def test_a_report_tells_of_a_folder_within_the_roots_alone(stub: DataServiceStub, tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 40, "dog": 40})

    response = await stub.GetDataReport(pb.GetDataReportRequest(dataset=str(tmp_path / "pets")))
    code, words = await refused(stub.GetDataReport(pb.GetDataReportRequest(dataset="/etc")))

    assert json.loads(response.report_json)["sample_count"] == 80
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "outside of the folders that data may come from" in words
