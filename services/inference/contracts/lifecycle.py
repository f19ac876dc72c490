"""The lifecycle contract: publish versions, list them, move traffic, follow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceServicer
from services.common.durations import duration_of
from services.common.errors import DeadlineExceeded, InvalidInput, Overloaded
from services.common.manifest import Graph, Manifest
from services.common.server import StopSignal
from services.common.traffic import model_not_found
from services.inference.models.serving import ModelServer
from services.inference.models.shadowing import ShadowCounts
from services.inference.models.uploads import Upload

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""Parsed in a thread, which holds the interpreter lock for about 10 ms a megabyte all the same."""
IDLE_SECONDS = 30
"""How long the next part of an upload is waited for; the contract states it."""


class LifecycleServicer(ModelLifecycleServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, models: ModelServer, stop: StopSignal, max_model_bytes: int) -> None:
        self._models = models
        self._stop = stop
        self._max_model_bytes = max_model_bytes

    async def PublishVersion(
        self, request_iterator: AsyncIterator[pb.PublishVersionRequest], context: Context
    ) -> pb.PublishVersionResponse:
        """Receive a graph, or what is missing of it, then let it be loaded, checked and added.

        A process that stops waits for a version that has arrived, and not for the rest of one that hasn't.
        """
        requests = self._stop.until(request_iterator)
        header = await _receive_header(requests)
        if len(header.manifest) > MAX_MANIFEST_BYTES:
            raise InvalidInput(
                f"the manifest has {len(header.manifest):,} bytes; at most {MAX_MANIFEST_BYTES:,} are accepted; "
                "use fewer golden vectors",
                field="manifest",
            )
        manifest = await asyncio.to_thread(Manifest.from_json, header.manifest, "manifest")
        self._models.states()  # nothing is sent for nothing while they are being loaded
        published = self._models.published(header.model, manifest)
        if published is not None:
            return pb.PublishVersionResponse(version=published)
        with self._models.uploads.receiving(header.model, self._stated_graph(manifest), header.offset) as upload:
            await _receive_graph(requests, upload)
            version = await self._models.publish_upload(header.model, upload, manifest)
        return pb.PublishVersionResponse(version=version)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        """Say where an upload can go on."""
        return pb.GetUploadResponse(
            received_bytes=self._models.uploads.received_bytes(request.model, request.graph_digest)
        )

    def _stated_graph(self, manifest: Manifest) -> Graph:
        if manifest.graph is None:
            raise InvalidInput("the manifest does not state size and SHA-256 of the graph; add graph", field="manifest")
        if manifest.graph.size_bytes > self._max_model_bytes:
            raise Overloaded(
                f"the graph has {manifest.graph.size_bytes} bytes; at most {self._max_model_bytes} are accepted; "
                "publish a smaller one or raise INFERENCE_MAX_MODEL_BYTES",
                reason="MODEL_TOO_LARGE",
            )
        return manifest.graph

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        """List one model's versions or all."""
        states = self._models.states()
        if request.model and request.model not in states:
            raise model_not_found(request.model, states)
        return pb.ListVersionsResponse(models=[states[request.model]] if request.model else states.values())

    async def WatchTraffic(
        self, request: pb.WatchTrafficRequest, context: Context | None = None
    ) -> AsyncIterator[pb.WatchTrafficResponse]:
        """Send the whole state now and after each change; UNAVAILABLE says that the process stops."""
        async for states in self._stop.until(self._models.watch()):
            yield pb.WatchTrafficResponse(models=states)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        """Replace the traffic by the given one."""
        return pb.SetTrafficResponse(
            traffic=await self._models.set_traffic(
                request.model,
                request.stable_version,
                _expected(request),
                canary_version=_canary_version(request),
                canary_share=request.canary.share,
                shadow_version=request.shadow_version,
                forget_previous=request.forget_previous,
            )
        )

    async def GetTraffic(self, request: pb.GetTrafficRequest, context: Context) -> pb.GetTrafficResponse:
        """Return the traffic and what the shadow has shown."""
        counts = self._models.shadow_counts(request.model)
        return pb.GetTrafficResponse(
            traffic=self._models.states()[request.model].traffic, shadow=_report(counts) if counts else None
        )

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteResponse:
        """Make what is tried out stable."""
        return pb.PromoteResponse(
            traffic=await self._models.promote(request.model, request.version, _expected(request))
        )

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Go back."""
        return pb.RollbackResponse(traffic=await self._models.roll_back(request.model, _expected(request)))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        """Remove a version."""
        await self._models.delete(request.model, request.version)
        return pb.DeleteVersionResponse()


def _expected(request: pb.SetTrafficRequest | pb.PromoteRequest | pb.RollbackRequest) -> int | None:
    return request.expected_generation if request.HasField("expected_generation") else None


def _canary_version(request: pb.SetTrafficRequest) -> int:
    if request.HasField("canary") and request.canary.version < 1:
        raise InvalidInput("canary names no version; name one, or leave canary out", field="canary.version")
    return request.canary.version


def _report(counts: ShadowCounts) -> pb.ShadowReport:
    return pb.ShadowReport(
        version=counts.version,
        compared=counts.compared,
        agreed=counts.agreed,
        failed=counts.failed,
        dropped=counts.dropped,
        skipped=counts.skipped,
        shadow_time=duration_of(counts.shadow_ns),
        stable_time=duration_of(counts.stable_ns),
        samples=counts.samples,
        agreed_samples=counts.agreed_samples,
    )


async def _receive_header(requests: AsyncIterator[pb.PublishVersionRequest]) -> pb.PublishVersionHeader:
    first = await _next(requests) or pb.PublishVersionRequest()
    if first.WhichOneof("part") != "header":
        raise InvalidInput(
            f"the first message of an upload must be its header; a message with {_part(first)} came: send the header "
            "first",
            field="header",
        )
    return first.header


async def _receive_graph(requests: AsyncIterator[pb.PublishVersionRequest], upload: Upload) -> None:
    while (request := await _next(requests)) is not None:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInput(
                f"every message after the header must be a chunk; a message with {_part(request)} came: send the graph "
                "in chunks",
                field="chunk",
            )
        await asyncio.to_thread(upload.append, request.chunk)
    await asyncio.to_thread(upload.complete)


def _part(request: pb.PublishVersionRequest) -> str:
    return request.WhichOneof("part") or "nothing"


async def _next(requests: AsyncIterator[pb.PublishVersionRequest]) -> pb.PublishVersionRequest | None:
    """Return the next message, None after the last; a client whose connection is dead must not hold its upload."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await anext(aiter(requests), None)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"no part of the upload came for {IDLE_SECONDS} seconds; ask GetUpload where to go on, and leave no "
            "longer gaps"
        ) from error
