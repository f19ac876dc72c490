"""Samples are selected over the contract as they are beneath it."""

from aimass.trainer.v1 import data_pb2 as pb
from aimass.trainer.v1.data_pb2_grpc import DataServiceStub
from tests.trainer.contracts.test_data import PETS, header, noise, sample, served, stub

__all__ = ["served", "stub"]


async def test_a_source_a_digest_and_a_part_of_the_samples_are_selected(stub: DataServiceStub) -> None:
    await stub.CreateModel(PETS)
    sent = [
        sample(image, ("cat", "dog")[row % 2], source=("here", "there")[row // 20])
        for row, image in enumerate(noise(40))
    ]
    await stub.ImportSamples(iter([header(), *sent]))

    everything = (await stub.ListSamples(pb.ListSamplesRequest(model="pets"))).samples
    there = (await stub.ListSamples(pb.ListSamplesRequest(model="pets", source="there"))).samples
    digest = everything[3].content_digest
    alike = (await stub.ListSamples(pb.ListSamplesRequest(model="pets", content_digest=digest))).samples
    reported = await stub.GetDataReport(pb.GetDataReportRequest(dataset=f"model:pets@{everything[19].id}"))

    assert list(there) == list(everything[20:])
    assert list(alike) == [everything[3]]
    assert b'"sample_count":20,' in reported.report_json
