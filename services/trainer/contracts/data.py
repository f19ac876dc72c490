"""The data contract: tasks, their samples, and what is in a data set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from aimass.trainer.v1 import data_pb2 as pb
from aimass.trainer.v1.data_pb2_grpc import DataServiceServicer
from services.common.errors import DeadlineExceeded, InvalidInput
from services.common.identity import caller_of
from services.common.server import StopSignal
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.data import imported, models, report
from services.trainer.data.sources import DataSources
from services.trainer.feedback import contributors
from services.trainer.recipes import make_options
from services.trainer.storage.database import Database

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

IDLE_SECONDS = 60
"""How long the next sample of an import is waited for; the contract states it."""
_AT_ONCE = 64
_BYTES_AT_ONCE = 16 * 1024 * 1024


class DataServicer(DataServiceServicer):
    """Unpacks, calls, packs.

    Args:
        database: Of tasks and samples, migrated.
        sources: Where data lies; `sources.database` is the same one.
        stop: Ends imports when the process stops.
    """

    def __init__(self, database: Database, sources: DataSources, stop: StopSignal) -> None:
        self._database = database
        self._sources = sources
        self._stop = stop
        self._reporting = asyncio.Semaphore(1)  # a report takes both memory and minutes of a processor

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        """Name a task."""
        model = await asyncio.to_thread(
            models.create_model, self._database, request.name, list(request.labels), request.preprocess_spec
        )
        return pb.CreateModelResponse(model=await self._model(model))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Return one task."""
        model = await asyncio.to_thread(models.find_model, self._database, request.name)
        return pb.GetModelResponse(model=await self._model(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List all tasks."""
        found = await asyncio.to_thread(models.list_models, self._database)
        return pb.ListModelsResponse(models=[await self._model(each) for each in found])

    async def _model(self, model: models.Model) -> pb.Model:
        counts = await asyncio.to_thread(models.count_samples, self._database, model)
        return pb.Model(
            name=model.name,
            labels=model.labels,
            preprocess_spec=model.spec.canonical_json(),
            preprocess_digest=model.spec.digest,
            create_time=timestamp_of(model.create_time),
            sample_counts=counts,
        )

    async def ImportSamples(
        self, request_iterator: AsyncIterator[pb.ImportSamplesRequest], context: Context
    ) -> pb.ImportSamplesResponse:
        """Take in samples, a few at a time, each few in one transaction."""
        caller = caller_of(context)
        is_trusted = partial(contributors.is_trusted, caller=caller, began=datetime.now(UTC))
        requests = self._stop.until(request_iterator)
        model = await _receive_header(requests)
        taking = await asyncio.to_thread(
            imported.SampleImport, self._database, self._sources.blobs, model, caller.contributor, is_trusted
        )
        with taking:
            async for batch in _batches(requests):
                await asyncio.to_thread(taking.add, batch)
        return pb.ImportSamplesResponse(
            accepted_count=taking.counts.accepted,
            duplicate_count=taking.counts.duplicates,
            rejected_count=taking.counts.rejected,
            rejections=[
                pb.RejectedSample(index=each.index, client_id=each.client_id, reason=each.reason, message=each.message)
                for each in taking.counts.rejections
            ],
        )

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Context) -> pb.ListSamplesResponse:
        """List a page of samples."""
        samples, token = await asyncio.to_thread(
            imported.list_samples,
            self._database,
            request.model,
            label=request.label,
            source=request.source,
            content_digest=request.content_digest,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListSamplesResponse(samples=[_sample(each) for each in samples], next_page_token=token)

    async def GetDataReport(self, request: pb.GetDataReportRequest, context: Context) -> pb.GetDataReportResponse:
        """Look at a data set, one at a time."""
        options = make_options("fast", {"dataset": request.dataset})
        async with self._reporting:
            made = await asyncio.to_thread(report.make_report, options, self._sources)
            page = await asyncio.to_thread(report.render_html, made)
        return pb.GetDataReportResponse(report_json=made.model_dump_json().encode(), report_html=page.encode())


def _sample(sample: imported.Sample) -> pb.Sample:
    return pb.Sample(
        id=sample.number,
        label=sample.label,
        content_digest=f"sha256:{sample.content_digest}",
        width=sample.width,
        height=sample.height,
        format=sample.format,
        orientation=sample.orientation,
        client_id=sample.client_id,
        source=sample.source,
        create_time=timestamp_of(sample.create_time),
        contributor=sample.contributor,
        observation_id=sample.observation or 0,
    )


async def _receive_header(requests: AsyncIterator[pb.ImportSamplesRequest]) -> str:
    first = await _next(requests) or pb.ImportSamplesRequest()
    if first.WhichOneof("part") != "header":
        raise InvalidInput(
            f"the first message of an import must be its header; a message with {_part(first)} came: send the header "
            "first",
            field="header",
        )
    return first.header.model


async def _batches(requests: AsyncIterator[pb.ImportSamplesRequest]) -> AsyncIterator[list[imported.NewSample]]:
    """Yield samples by the few: one transaction for each costs more than the samples do."""
    batch: list[imported.NewSample] = []
    while (request := await _next(requests)) is not None:
        if request.WhichOneof("part") != "sample":
            raise InvalidInput(
                f"every message after the header must be a sample; a message with {_part(request)} came: send samples",
                field="sample",
            )
        sample = request.sample
        batch.append(imported.NewSample(sample.image, sample.label, sample.client_id, sample.source))
        if len(batch) == _AT_ONCE or sum(len(each.image) for each in batch) >= _BYTES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _part(request: pb.ImportSamplesRequest) -> str:
    return request.WhichOneof("part") or "nothing"


async def _next(requests: AsyncIterator[pb.ImportSamplesRequest]) -> pb.ImportSamplesRequest | None:
    """Return the next message, None after the last; a client whose connection is dead must not hold its import."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await anext(aiter(requests), None)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"no sample came for {IDLE_SECONDS} seconds; send the import again, what came before is kept"
        ) from error
